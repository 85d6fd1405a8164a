//! The public port: listens, and serves what a worker's application answers on connections that are
//! given up in time. What `actix_web::HttpServer` puts together, which takes no connections but its own.
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::time::Duration;

use actix_http::{HttpService, Protocol, Request, Response};
use actix_server::Server;
use actix_service::{IntoServiceFactory, ServiceFactory, ServiceFactoryExt, fn_service, map_config};
use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::AppConfig;
use anyhow::Context;
use shared::config;
use tokio::net::{TcpSocket, TcpStream};

use crate::connection::Connection;

/// How long the head of a request may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client may take to close its side.
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Connections that wait to be accepted.
const BACKLOG: u32 = 8_192;

/// Binds and runs. Each worker makes its application by itself.
pub fn serve<A, I, S, B>(config: &config::Server, application: A) -> anyhow::Result<(Server, SocketAddr)>
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
    let stall = Duration::from_millis(config.stall_timeout_ms);
    let mut builder = Server::build()
        .workers(config.workers())
        .max_concurrent_connections(config.connections_max)
        .shutdown_timeout(config.shutdown_timeout_ms.div_ceil(1_000))
        .disable_signals();
    let stopping = builder.graceful_shutdown_signal();
    for listener in listeners {
        let (application, stopping) = (application.clone(), stopping.clone());
        let local = listener.local_addr()?;
        builder = builder.listen("http", listener, move || {
            let stopping = stopping.clone();
            let http = HttpService::build()
                .graceful_shutdown_signal(move || {
                    let stopping = stopping.clone();
                    async move { stopping.notified().await }
                })
                .keep_alive(keep_alive)
                .client_request_timeout(HEAD_TIMEOUT)
                .client_disconnect_timeout(DISCONNECT_TIMEOUT)
                .h1_allow_half_closed(true)
                .local_addr(local)
                .on_connect_ext(|connection: &Connection, known| {
                    known.insert(connection.pace().clone());
                })
                .finish(map_config(application().into_factory(), |()| AppConfig::default()));
            fn_service(move |stream: TcpStream| async move {
                let peer = stream.peer_addr().ok();
                // An idle one is mostly sent away by the server itself, before.
                Ok((Connection::new(stream, keep_alive + stall), Protocol::Http1, peer))
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
    socket.bind(address)?;
    socket.listen(BACKLOG)?.into_std()
}
