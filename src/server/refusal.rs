//! A call that is refused before a face sees it, in the shape of the face that it is for.

use axum::{
    extract::Request,
    http::{
        HeaderValue, StatusCode,
        header::{CONTENT_TYPE, WWW_AUTHENTICATE},
    },
    response::{IntoResponse, Response},
};

use super::{
    anthropic::error::Anthropic,
    grpc::status,
    http::failure::{Failed, Shape},
    ollama::Ollama,
    openai::error::OpenAi,
};
use crate::error::Error;

/// How a face answers with an error.
type Refuse = fn(Error) -> Response;

/// What paths begin with, and how their face says no. The first that fits counts; the last fits all.
const FACES: [(&str, Refuse); 3] =
    [("/v1/messages", refused::<Anthropic>), ("/api/", refused::<Ollama>), ("/", refused::<OpenAi>)];

/// The answer to a request that goes no further.
pub(super) fn refuse(request: &Request, error: Error) -> Response {
    let content_type = request.headers().get(CONTENT_TYPE);
    if let Some(content_type) = content_type.filter(|value| value.as_bytes().starts_with(b"application/grpc")) {
        return status::refusal(error, content_type.clone());
    }
    let path = request.uri().path();
    let face = FACES
        .iter()
        .find(|(prefix, _)| path.starts_with(prefix))
        .map_or(refused::<OpenAi> as fn(_) -> _, |(_, face)| *face);
    let mut response = face(error);
    if response.status() == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

fn refused<S: Shape>(error: Error) -> Response {
    Failed::<S>::from(error).into_response()
}
