//! Puts the API together: the same for the program, the embedded form and the tests.
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::ServerHandle;
use actix_web::web::{self, ThinData};
use anyhow::Context;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use shared::config::Config;
use shared::program::backend::Backend;
use shared::program::ops;
use shared::runtime::shutdown::{self, Shutdown, Trigger};
use tokio::task::JoinHandle;

use crate::admission::auth::Authorizer;
use crate::event_feed;
use crate::health::{queue_depth, store_probe};
use crate::http::cors::Cors;
use crate::http::listener;
use crate::http::middleware::{Wrapping, serve};
use crate::http::path_prefix::PathPrefix;
use crate::http::request_id::RequestIds;
use crate::routes;
use crate::routes::openapi;
use crate::state::{App, Shared};
use crate::wait::reconcile;

/// Time that a stop may take beyond its settings, for background tasks and the operations port.
const STOP_MARGIN: Duration = Duration::from_secs(3);

/// A running API.
pub struct Server {
    pub address: SocketAddr,
    pub ops_address: SocketAddr,
    app: Arc<App>,
    handle: ServerHandle,
    serving: JoinHandle<std::io::Result<()>>,
    completions: Vec<Shutdown>,
    ops: ops::OpsServer,
    background: Vec<JoinHandle<()>>,
    trigger: Trigger,
    drain_grace: Duration,
}

impl Server {
    /// Listens and serves. The broker and the store may be away; a port that is taken is an error.
    pub fn start(config: &Config, backend: &Backend) -> anyhow::Result<Self> {
        let (trigger, shutdown) = shutdown::channel();
        let app = Arc::new(App::new(config, backend, Authorizer::of(config)?));
        let (background, mut completions) = spawn_background(&app, &shutdown);
        // The operations port comes first: if it is taken, no request has come in vain.
        let ops = serve_ops(config, &app)?;
        let (server, address) = serve_http(config, &app)?;
        let handle = server.handle();
        let (serving, serving_completion) = shutdown::watched(server);
        completions.push(serving_completion);
        Ok(Self {
            address,
            ops_address: ops.address(),
            app,
            handle,
            serving,
            completions,
            ops,
            background,
            trigger,
            drain_grace: Duration::from_millis(config.server.drain_grace_ms),
        })
    }

    /// Longest time that [`Self::stop`] takes while all threads run.
    pub fn stop_max(config: &Config) -> Duration {
        let server = &config.server;
        let (grace, timeout) = (server.drain_grace_ms, server.shutdown_timeout_ms);
        // In full seconds, as the HTTP library counts.
        Duration::from_millis(grace) + Duration::from_secs(timeout.div_ceil(1_000)) + STOP_MARGIN
    }

    /// Number of requests that wait for the outcome of a write, or for a change.
    pub fn waiting(&self) -> usize {
        self.app.waiters.open()
    }

    /// Completion signals of the HTTP server and of the background tasks: events, waits, the probe of the
    /// store, the depth of the queue, and the keys. A part that completes before `stop` is a failure.
    pub fn completions(&self) -> Vec<Shutdown> {
        self.completions.clone()
    }

    /// Fails readiness, serves on for the grace, then answers open requests and closes. The ports
    /// of the backend stay open.
    pub async fn stop(self) {
        self.app.in_flight.drain();
        tokio::time::sleep(self.drain_grace).await;
        // No request waits on for an outcome that may take longer than the stop.
        self.app.waiters.close();
        self.handle.stop(true).await;
        match self.serving.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "http server failed"),
            Err(error) => tracing::error!(%error, "http server task failed"),
        }
        self.trigger.request();
        for task in self.background {
            if let Err(error) = task.await {
                tracing::error!(%error, "background task failed");
            }
        }
        if let Err(error) = self.ops.stop().await {
            tracing::error!(%error, "operations port failed");
        }
    }
}

/// Starts the tasks beside the requests, each with the signal of its completion.
fn spawn_background(app: &Arc<App>, shutdown: &Shutdown) -> (Vec<JoinHandle<()>>, Vec<Shutdown>) {
    let (store, breaker) = (app.store.clone(), app.store_breaker.clone());
    let reconcile = reconcile::run(app.waiters.clone(), store, breaker, shutdown.clone());
    let mut parts: Vec<(&'static str, BoxFuture<'static, ()>)> = vec![
        ("cache_events", event_feed::run(app.clone(), shutdown.clone()).boxed()),
        ("waits", reconcile.boxed()),
        ("store_probe", store_probe::run(app.clone(), shutdown.clone()).boxed()),
        ("queue_look", queue_depth::run(app.clone(), shutdown.clone()).boxed()),
    ];
    if let Authorizer::Keyed(keys) = &app.authorizer {
        parts.push(("keys", keys.clone().follow(shutdown.clone()).boxed()));
    }
    let progress = &app.backend.progress;
    let watched = |(name, part)| shutdown::watched(progress.clone().watching(name, part));
    parts.into_iter().map(watched).unzip()
}

/// Binds and runs the public port.
fn serve_http(config: &Config, app: &Arc<App>) -> anyhow::Result<(actix_web::dev::Server, SocketAddr)> {
    let app = app.clone();
    let path_prefix = config.server.path_prefix.clone();
    let cors_origins = config.auth.cors_origins.clone();
    listener::serve(&config.server, move || {
        actix_web::rt::spawn(app.backend.progress.clone().ticking("http_worker"));
        let wrapping = Rc::new(Wrapping {
            in_flight: app.in_flight.clone(),
            ids: RequestIds::new(rand::random()),
            prefix: PathPrefix::new(&path_prefix),
            cors: Cors::new(&cors_origins),
            route_of: routes::seconds_of,
        });
        let prefix = path_prefix.clone();
        actix_web::App::new()
            .app_data(ThinData(Shared::new(app.clone())))
            .wrap_fn(move |request, service| serve(&wrapping, request, service))
            .configure(routes::configure)
            .configure(move |config| openapi::configure(config, &prefix))
            .default_service(web::to(routes::no_such_path))
    })
}

fn serve_ops(config: &Config, app: &Arc<App>) -> anyhow::Result<ops::OpsServer> {
    let (host, port) = (config.ops.host.as_str(), config.ops.port.unwrap_or(0));
    let health = app.clone();
    ops::serve(host, port, &app.backend.progress, Arc::new(move || health.health()))
        .with_context(|| format!("cannot listen on {host}:{port} (ops.host, ops.port)"))
}
