//! What a request must bring. Which route needs what stands in the table of routes.
use shared::model::api_key::Scope;

/// What a request must bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Answered to everybody under every name: probes come by address, and learn nothing.
    Nothing,
    /// Answered to everybody who means this service.
    Public,
    Read,
    Write,
    Admin,
}

impl Need {
    pub fn scope(self) -> Option<Scope> {
        match self {
            Self::Nothing | Self::Public => None,
            Self::Read => Some(Scope::Read),
            Self::Write => Some(Scope::Write),
            Self::Admin => Some(Scope::Admin),
        }
    }
}
