//! What a request that failed is told.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use outgate_cluster::state::settings::SettingError;
use outgate_cluster::{ProposeError, Refusal, TokenError};
use serde_json::json;

use crate::quarantine::QuarantineError;
use crate::queue::QueueError;
use crate::spool::SpoolError;
use crate::web::csv::CsvError;
use crate::web::dkim::DkimError;
use crate::web::echo;
use crate::web::password::PasswordError;

/// A status with one line for the caller.
#[derive(Debug)]
pub(in crate::web) struct ApiError {
    status: StatusCode,
    message: String,
}

impl ApiError {
    pub(super) fn wrong(message: impl ToString) -> Self {
        Self { status: StatusCode::BAD_REQUEST, message: message.to_string() }
    }

    pub(super) fn not_found(message: impl ToString) -> Self {
        Self { status: StatusCode::NOT_FOUND, message: message.to_string() }
    }

    pub(super) fn conflict(message: impl ToString) -> Self {
        Self { status: StatusCode::CONFLICT, message: message.to_string() }
    }

    /// Something better to say where the input is wrong.
    pub(super) fn or_wrong(self, better: impl FnOnce() -> Self) -> Self {
        if self.status == StatusCode::BAD_REQUEST { better() } else { self }
    }

    /// The node cannot do it now; the caller may try again.
    pub(super) fn unavailable(message: impl ToString) -> Self {
        Self { status: StatusCode::SERVICE_UNAVAILABLE, message: message.to_string() }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(json!({ "error": echo::line(&self.message) }))).into_response()
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::UnknownDomain(_)
            | Refusal::UnknownUser(_)
            | Refusal::UnknownIdentity(..)
            | Refusal::UnknownImport(_)
            | Refusal::UnknownDkimKey(..)
            | Refusal::UnknownNode(_)
            | Refusal::NotBlocked { .. } => Self::not_found(refusal),
            Refusal::DomainExists(_)
            | Refusal::DomainInUse(_)
            | Refusal::UserExists(_)
            | Refusal::NetworkTaken(..)
            | Refusal::FormedAlready
            | Refusal::AddressTaken(..)
            | Refusal::LastNode(_)
            | Refusal::NotNew
            | Refusal::ImportRefused(..) => Self::conflict(refusal),
            Refusal::TooManyImports(_) | Refusal::TooManyTokens(_) => Self::unavailable(refusal),
            Refusal::OwnerMissing
            | Refusal::PasswordMissing
            | Refusal::OwnerDiffers(..)
            | Refusal::BadSetting(_)
            | Refusal::ImportTooLarge(_)
            | Refusal::UnknownToken
            | Refusal::NestedBatch => Self::wrong(refusal),
        }
    }
}

impl From<ProposeError> for ApiError {
    fn from(error: ProposeError) -> Self {
        Self::unavailable(error)
    }
}

impl From<TokenError> for ApiError {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Propose(error) => error.into(),
            TokenError::Refused(refusal) => refusal.into(),
            TokenError::Authority | TokenError::Random => Self::unavailable(error),
        }
    }
}

impl From<QueueError> for ApiError {
    fn from(error: QueueError) -> Self {
        match error {
            QueueError::Unknown(_) => Self::not_found(error),
            QueueError::Busy(_) | QueueError::Frozen(_) => Self::conflict(error),
            QueueError::Spool(_) => Self::unavailable(error),
        }
    }
}

impl From<SpoolError> for ApiError {
    fn from(error: SpoolError) -> Self {
        Self::unavailable(error)
    }
}

impl From<QuarantineError> for ApiError {
    fn from(error: QuarantineError) -> Self {
        match error {
            QuarantineError::Unknown(_) => Self::not_found(error),
            QuarantineError::Full | QuarantineError::NoMirror(_) | QuarantineError::Io(_) => Self::unavailable(error),
        }
    }
}

impl From<SettingError> for ApiError {
    fn from(error: SettingError) -> Self {
        let given = match &error {
            SettingError::Unknown(given) | SettingError::Value { given, .. } | SettingError::NoValue(given) => given,
            SettingError::ClusterOnly(key) | SettingError::DomainOnly(key) => *key,
        };
        Self::wrong(echo::about(&error, given))
    }
}

impl From<PasswordError> for ApiError {
    fn from(error: PasswordError) -> Self {
        match error {
            PasswordError::Failed => Self::unavailable(error),
            PasswordError::Empty | PasswordError::TooLong | PasswordError::Nul | PasswordError::Hash => {
                Self::wrong(error)
            }
        }
    }
}

impl From<CsvError> for ApiError {
    fn from(error: CsvError) -> Self {
        Self::wrong(error)
    }
}

impl From<DkimError> for ApiError {
    fn from(error: DkimError) -> Self {
        Self::unavailable(error)
    }
}
