//! One call: its id and its JSON body, read within bounds of size, time and memory.

use std::time::Duration;

use axum::{
    body::Body,
    extract::Request,
    http::{
        HeaderMap, StatusCode,
        header::{CONTENT_LENGTH, CONTENT_TYPE},
    },
};
use futures::StreamExt;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::{Http, failure::Failure, request_id::RequestId};
use crate::{
    error::{Error, Result},
    server::{access::Caller, bodies::BodyRoom},
};

/// Bytes of the largest body, as over gRPC.
const MAX_BODY_BYTES: usize = 4 << 20;
/// How long a client may take to send one.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// What bodies must call themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ContentType {
    /// `application/json`: pages of other sites cannot send that without being asked.
    Json,
    /// Whatever: clients of this face send JSON without saying so. Its routes look at [`origin`](super::origin) instead.
    Any,
}

/// A call with its body.
pub(crate) struct Call {
    pub(crate) request_id: String,
    pub(crate) caller: Caller,
    body: Vec<u8>,
    _room: BodyRoom,
}

impl Call {
    /// Reads a call.
    ///
    /// # Errors
    /// 413 beyond [`MAX_BODY_BYTES`], 415 where it is not JSON by its own account, 408 where it does not come, 429 while
    /// too many others are read.
    pub(crate) async fn read(http: &Http, request: Request, content_type: ContentType) -> Result<Self, Failure> {
        if content_type == ContentType::Json && !says_json(request.headers()) {
            let why = "the body must be JSON: send the header content-type: application/json";
            return Err(Failure::of_http(StatusCode::UNSUPPORTED_MEDIA_TYPE, why));
        }
        let length = announced_bytes(request.headers()).unwrap_or_default();
        if length > MAX_BODY_BYTES {
            return Err(too_large());
        }
        let caller = Caller::of(request.extensions())?;
        let request_id = request.extensions().get::<RequestId>().map(|id| id.0.clone()).unwrap_or_default();
        let mut room = http.models.bodies().begin();
        let body = timeout(BODY_TIMEOUT, read(http, request.into_body(), length, &mut room))
            .await
            .map_err(|_| Failure::of_http(StatusCode::REQUEST_TIMEOUT, "the body did not come in time"))??;
        Ok(Self { request_id, caller, body, _room: room })
    }

    /// The id alone; the body is let go.
    pub(crate) fn into_id(self) -> String {
        self.request_id
    }

    /// Reads the fields of `T` from the body. Others are let be, so that several types can share one body.
    ///
    /// # Errors
    /// `InvalidArgument` with the path of the field that is not what it must be.
    pub(crate) fn parse<T: DeserializeOwned>(&self) -> Result<T> {
        let mut deserializer = serde_json::Deserializer::from_slice(&self.body);
        let parsed = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
            let path = error.path().to_string();
            let why = error.into_inner();
            let broken = why.is_syntax() || why.is_eof();
            let field = if broken || path == "." { "body".to_owned() } else { path };
            Error::invalid(field, why.to_string())
        })?;
        deserializer.end().map_err(|error| Error::invalid("body", error.to_string()))?;
        Ok(parsed)
    }
}

/// Reads a body of so many bytes, as far as is known, and takes room for each that comes.
async fn read(http: &Http, body: Body, announced: usize, room: &mut BodyRoom) -> Result<Vec<u8>, Failure> {
    let (mut bytes, mut frames) = (Vec::with_capacity(announced), body.into_data_stream());
    while let Some(frame) = frames.next().await {
        let frame = frame.map_err(|_| Failure::of_http(StatusCode::BAD_REQUEST, "the body could not be read"))?;
        let length = bytes.len() + frame.len();
        if length > MAX_BODY_BYTES {
            return Err(too_large());
        }
        room.resize(length).map_err(|error| http.models.refused(error))?;
        bytes.extend_from_slice(&frame);
    }
    Ok(bytes)
}

fn too_large() -> Failure {
    let why = format!("the body is too large: at most {MAX_BODY_BYTES} bytes are allowed");
    Failure::of_http(StatusCode::PAYLOAD_TOO_LARGE, why)
}

fn says_json(headers: &HeaderMap) -> bool {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = value.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
}

fn announced_bytes(headers: &HeaderMap) -> Option<usize> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
