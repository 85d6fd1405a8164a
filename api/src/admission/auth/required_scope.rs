//! Scopes that routes require. Which route requires which stands in the table of routes.
use shared::model::api_key::Scope;

/// Scope that a route requires of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequiredScope {
    /// Answered to everybody under every name: probes come by address, and learn nothing.
    Nothing,
    /// Answered to every caller that means this service.
    Public,
    Read,
    Write,
    Admin,
}

impl RequiredScope {
    pub fn scope(self) -> Option<Scope> {
        match self {
            Self::Nothing | Self::Public => None,
            Self::Read => Some(Scope::Read),
            Self::Write => Some(Scope::Write),
            Self::Admin => Some(Scope::Admin),
        }
    }
}
