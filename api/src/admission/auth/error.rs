//! Reasons for which a request is refused before its handler sees it.
use shared::model::api_key::Scope;

/// Why a request is refused before its handler sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthError {
    /// No key where one is needed.
    NoKey,
    /// The header holds no key.
    Malformed,
    Unknown,
    Expired,
    /// The key lacks this scope.
    Lacks(Scope),
    /// An admin route while there are no keys.
    AdminOff,
    /// HTTP/1.1 without a host, or something that is none.
    NoHost,
    OtherHost,
    OtherOrigin,
}

impl AuthError {
    /// The label of its metric.
    pub fn word(self) -> &'static str {
        match self {
            Self::NoKey => "no_key",
            Self::Malformed => "malformed",
            Self::Unknown => "unknown",
            Self::Expired => "expired",
            Self::Lacks(_) => "scope",
            Self::AdminOff => "admin_off",
            Self::NoHost => "no_host",
            Self::OtherHost => "host",
            Self::OtherOrigin => "origin",
        }
    }
}

impl AuthError {
    /// `WWW-Authenticate`, in the words of RFC 6750; `None` where a key would not help.
    pub fn challenge(self) -> Option<String> {
        match self {
            Self::NoKey => Some("Bearer".into()),
            Self::Malformed | Self::Unknown | Self::Expired => Some(r#"Bearer error="invalid_token""#.into()),
            Self::Lacks(scope) => {
                Some(format!(r#"Bearer error="insufficient_scope", scope="{}""#, scope.name()))
            }
            Self::AdminOff | Self::NoHost | Self::OtherHost | Self::OtherOrigin => None,
        }
    }
}
