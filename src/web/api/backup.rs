//! `/backup`: the replicated state as one file.

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio_util::io::ReaderStream;

use super::{Answer, ApiError, Parts};

const CHUNK_BYTES: usize = 256 * 1024;

pub(super) fn routes() -> Router<Parts> {
    Router::new().route("/backup", get(backup))
}

async fn backup(State(parts): State<Parts>) -> Answer<Response> {
    let file = parts.cluster.backup().await.map_err(ApiError::unavailable)?;
    let length = file.metadata().map_err(ApiError::unavailable)?.len();
    let headers =
        [(header::CONTENT_TYPE, "application/octet-stream".to_owned()), (header::CONTENT_LENGTH, length.to_string())];
    let stream = ReaderStream::with_capacity(tokio::fs::File::from_std(file), CHUNK_BYTES);
    Ok((headers, Body::from_stream(stream)).into_response())
}
