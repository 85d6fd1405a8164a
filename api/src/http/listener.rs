//! The public port: listens, and serves what a worker's application answers on connections that are
//! given up in time. What `actix_web::HttpServer` puts together, which takes no connections but its own.
use std::future::ready;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix_http::{HttpService, Protocol, Request, Response};
use actix_server::Server;
use actix_service::{IntoServiceFactory, ServiceFactory, ServiceFactoryExt, fn_service, map_config};
use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::AppConfig;
use actix_web::error::Error;
use anyhow::Context;
use shared::config;
use tokio::net::{TcpSocket, TcpStream};

use crate::admission::memory_budget::MemoryBudget;
use crate::http::connection::Connection;
use crate::http::connection_state::{ConnectionLimits, ConnectionState};
use crate::http::large_answer::PART_BYTES_MAX;
use crate::http::request_id::RequestIds;

/// How long the head of a request may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client may take to close its side.
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Bytes that the system holds of what one client does not read; by itself it would take megabytes.
const SEND_BUFFER_BYTES: u32 = 128 << 10;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 8_192;

/// Binds and runs. Each worker makes its application by itself.
pub fn serve<A, I, S, B>(
    config: &config::ServerSettings,
    application: A,
) -> anyhow::Result<(Server, SocketAddr)>
where
    A: Fn() -> I + Clone + Send + 'static,
    I: IntoServiceFactory<S, Request>,
    S: ServiceFactory<Request, Config = AppConfig> + 'static,
    S::Error: Into<Response<BoxBody>>,
    S::InitError: std::fmt::Debug,
    S::Response: Into<Response<B>>,
    B: MessageBody + 'static,
{
    let (host, port) = (config.host.as_str(), config.port);
    let taken = || format!("cannot listen on {host}:{port} (server.host, server.port)");
    let listeners = listen(host, port).with_context(taken)?;
    let address = listeners.first().context("the server has no address")?.local_addr()?;
    let keep_alive = Duration::from_millis(config.keep_alive_ms);
    // An idle connection is mostly closed by the server itself, before its patience ends.
    let limits = Arc::new(ConnectionLimits {
        patience: keep_alive + Duration::from_millis(config.stall_timeout_ms),
        answer_timeout: Duration::from_millis(config.answer_timeout_ms),
        half_closed_wait: Duration::from_millis(config.half_closed_wait_ms),
        answers: MemoryBudget::new(config.answers_bytes_max),
    });
    let mut builder = Server::build()
        .workers(config.workers())
        .max_concurrent_connections(config.connections_max)
        .shutdown_timeout(config.shutdown_timeout_ms.div_ceil(1_000))
        .disable_signals();
    let stopping = builder.graceful_shutdown_signal();
    for listener in listeners {
        let (application, stopping, limits) = (application.clone(), stopping.clone(), limits.clone());
        let local = listener.local_addr()?;
        builder = builder.listen("http", listener, move || {
            let (stopping, limits) = (stopping.clone(), limits.clone());
            let request_ids = Rc::new(RequestIds::new(rand::random()));
            let http = HttpService::build()
                .graceful_shutdown_signal(move || {
                    let stopping = stopping.clone();
                    async move { stopping.notified().await }
                })
                .keep_alive(keep_alive)
                .client_request_timeout(HEAD_TIMEOUT)
                .client_disconnect_timeout(DISCONNECT_TIMEOUT)
                .h1_allow_half_closed(true)
                .h1_write_buffer_size(PART_BYTES_MAX)
                .expect(fn_service(|request: Request| {
                    if let Some(state) = request.conn_data::<Rc<ConnectionState>>() {
                        state.ask();
                    }
                    ready(Ok::<_, Error>(request))
                }))
                .local_addr(local)
                .on_connect_ext(|connection: &Connection, known| {
                    known.insert(connection.state().clone());
                })
                .finish(map_config(application().into_factory(), |()| AppConfig::default()));
            fn_service(move |stream: TcpStream| {
                let peer = stream.peer_addr().ok();
                ready(Ok((
                    Connection::new(stream, limits.clone(), request_ids.clone()),
                    Protocol::Http1,
                    peer,
                )))
            })
            .and_then(http)
        })?;
    }
    Ok((builder.run(), address))
}

/// On every address of the host that can be had.
fn listen(host: &str, port: u16) -> io::Result<Vec<TcpListener>> {
    let mut failed = io::Error::from(io::ErrorKind::AddrNotAvailable);
    let mut listeners = Vec::new();
    for address in (host, port).to_socket_addrs()? {
        match listen_on(address) {
            Ok(listener) => listeners.push(listener),
            Err(error) => failed = error,
        }
    }
    if listeners.is_empty() { Err(failed) } else { Ok(listeners) }
}

fn listen_on(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A program that is started again must not wait for connections of the one before.
    socket.set_reuseaddr(true)?;
    // Connections inherit it.
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)?.into_std()
}
