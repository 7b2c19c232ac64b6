//! The `x-request-id` of a call: the client's, or one drawn for it. It names the request in logs and returns with the
//! answer.

use axum::{
    extract::Request,
    http::{HeaderName, HeaderValue},
    middleware::Next,
    response::Response,
};

use crate::server::backend::draw_request_id;

const HEADER: HeaderName = HeaderName::from_static("x-request-id");
/// Bytes of an id that is taken over from a client.
const MAX_BYTES: usize = 128;

/// A call's id, in its extensions.
#[derive(Clone, Debug)]
pub(crate) struct RequestId(pub(crate) String);

/// Names a call and its answer. An id that would be no harmless word in a log or a file name is replaced.
pub(super) async fn name(mut request: Request, next: Next) -> Response {
    let given = request.headers().get(&HEADER).and_then(|value| value.to_str().ok()).filter(|id| harmless(id));
    let id = given.map_or_else(draw_request_id, str::to_owned);
    request.extensions_mut().insert(RequestId(id.clone()));
    let mut response = next.run(request).await;
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(HEADER, value);
    }
    response
}

fn harmless(id: &str) -> bool {
    let word = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.' | b':');
    !id.is_empty() && id.len() <= MAX_BYTES && id.bytes().all(word)
}
