//! Parameters of a request.

use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts as RequestParts;
use serde::de::DeserializeOwned;

use super::{Answer, ApiError};

/// What stands behind the `?`, whose faults are told like all others.
pub(super) struct Params<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut RequestParts, _: &S) -> Answer<Self> {
        let parsed = Query::try_from_uri(&parts.uri);
        parsed.map(|Query(value)| Self(value)).map_err(|rejection| {
            let text = rejection.body_text();
            ApiError::wrong(text.strip_prefix("Failed to deserialize query string: ").unwrap_or(&text))
        })
    }
}
