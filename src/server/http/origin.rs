//! The pages that may call a face whose requests a browser sends without asking first.
//!
//! A browser asks the server (CORS) before a page of another site may send JSON that says so. A body of another type goes out
//! at once, and only its answer is kept from the page: a generation would run all the same. Browsers name the page's site
//! in `Origin`; programs that are none do not send it.

use axum::{
    extract::{Request, State},
    http::{
        HeaderMap, StatusCode, Uri,
        header::{HOST, ORIGIN},
    },
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::failure::{Failed, Failure, Shape};
use crate::config::AllowedOrigins;

/// Refuses, in the shape of face `S`, calls from pages that are neither the server's own nor of a site that is listed.
pub(crate) async fn own_or_listed<S: Shape>(
    State(origins): State<AllowedOrigins>,
    request: Request,
    next: Next,
) -> Response {
    if may_call(&origins, request.headers(), request.uri()) {
        return next.run(request).await;
    }
    let why = "pages of this origin may not call: start the server with --allowed-origins and list it";
    Failed::<S>::from(Failure::of_http(StatusCode::FORBIDDEN, why)).into_response()
}

fn may_call(allowed: &AllowedOrigins, headers: &HeaderMap, uri: &Uri) -> bool {
    let AllowedOrigins::List(list) = allowed else { return true };
    let Some(origin) = headers.get(ORIGIN) else { return true };
    let Ok(origin) = origin.to_str() else { return false };
    // HTTP/2 has the host in the address.
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).or(uri.authority().map(|host| host.as_str()));
    let site = origin.split_once("://").map(|(_, site)| site);
    let is_own = site.zip(host).is_some_and(|(site, host)| site.eq_ignore_ascii_case(host));
    is_own || list.iter().any(|listed| listed == origin)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_calls_its_own_server_or_is_listed() {
        let listed = AllowedOrigins::List(vec!["https://chat.example.org".into()]);
        let may = |allowed: &AllowedOrigins, origin: &'static str, host: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.insert(ORIGIN, origin.parse().unwrap());
            host.into_iter().for_each(|host| drop(headers.insert(HOST, host.parse().unwrap())));
            may_call(allowed, &headers, &Uri::from_static("https://model.example/api/chat"))
        };
        let here = Some("127.0.0.1:50051");
        assert!(may(&listed, "http://127.0.0.1:50051", here) && may(&listed, "https://chat.example.org", here));
        assert!(may(&listed, "https://Model.example", None), "HTTP/2");
        for origin in [
            "https://evil.example",
            "http://127.0.0.1:8000",
            "http://127.0.0.1",
            "null",
            "https://chat.example.org.evil",
        ] {
            assert!(!may(&listed, origin, here), "{origin}");
            assert!(may(&AllowedOrigins::Any, origin, here), "{origin}");
        }
        assert!(may_call(&listed, &HeaderMap::new(), &Uri::from_static("/api/chat")), "no browser");
    }
}
