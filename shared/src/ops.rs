//! The operations port.
use serde::Serialize;
use std::collections::BTreeMap;
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Ok,
    Degraded,
    Down,
}
#[derive(Clone, Debug, Serialize)]
pub struct Health {
    pub status: Status,
    #[serde(flatten)]
    pub components: BTreeMap<String, &'static str>,
    pub breakers: BTreeMap<String, &'static str>,
    #[serde(skip)]
    pub ready: bool,
}
pub struct OpsServer;
impl OpsServer {
    pub fn address(&self) -> std::net::SocketAddr {
        unreachable!()
    }
    pub async fn stop(self) {}
}
pub fn serve(
    _c: &crate::config::Ops,
    _p: u16,
    _h: std::sync::Arc<dyn Fn() -> Health + Send + Sync>,
) -> std::io::Result<OpsServer> {
    unreachable!()
}
pub const API_PORT: u16 = 9190;
