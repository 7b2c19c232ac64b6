//! Browsers: gRPC-Web as it goes over the wire, who may call from where, and the page at `/`.
//!
//! The client is written here, byte by byte: what a browser's own would hide (frames, trailers, preflights) is what is
//! looked at.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use candlewick::{
    config::AllowedOrigins,
    engine::{ModelText, fake::FakeOptions},
    proto::candlewick::v1::{
        GenerateStreamRequest, GenerateStreamResponse, ListRequest, ListResponse, generate_stream_response::Event,
    },
    server::ServeOptions,
};
use prost::Message;

use super::{Server, config, expected, fakes, ids, info, request};
use crate::openai::http::{Answer, get, send};

const STREAM: &str = "/candlewick.v1.Generation/GenerateStream";
const LIST: &str = "/candlewick.v1.Models/List";
const PAGE: &str = "https://chat.example.org";
/// Flags of a frame that holds trailers.
const TRAILERS: u8 = 0x80;

/// One message in its frame: flags, length, bytes.
fn frame(message: &impl Message) -> Vec<u8> {
    let body = message.encode_to_vec();
    [&[0][..], &u32::try_from(body.len()).unwrap().to_be_bytes(), &body].concat()
}

/// The frames of a body: flags and contents.
fn frames(mut body: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut frames = Vec::new();
    while let Some((head, rest)) = body.split_at_checked(5) {
        let (content, rest) = rest.split_at(u32::from_be_bytes(head[1..].try_into().unwrap()) as usize);
        frames.push((head[0], content.to_vec()));
        body = rest;
    }
    assert!(body.is_empty(), "half a frame");
    frames
}

/// Base64 whose pieces were padded each for itself.
fn text(body: &[u8]) -> Vec<u8> {
    body.chunks(4).flat_map(|quad| BASE64_STANDARD.decode(quad).unwrap()).collect()
}

async fn call(server: &Server, path: &str, content_type: &str, headers: &str, body: &[u8]) -> Answer {
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {content_type}\r\naccept: {content_type}\r\n\
         content-length: {}\r\nx-grpc-web: 1\r\n{headers}\r\n",
        body.len(),
    );
    send(server.address, &[head.as_bytes(), body].concat()).await
}

/// A server that lets pages of these sites call.
async fn open_to(origins: AllowedOrigins) -> Server {
    let options = ServeOptions { allowed_origins: origins, ..ServeOptions::default() };
    let factory = fakes(&config(), |_| FakeOptions::default());
    Server::with(info(), ModelText::default(), config(), factory, options).await
}

async fn preflight(server: &Server, origin: &str) -> Answer {
    let request = format!(
        "OPTIONS {STREAM} HTTP/1.1\r\nhost: localhost\r\norigin: {origin}\r\naccess-control-request-method: POST\r\n\
         access-control-request-headers: content-type,x-grpc-web,x-user-agent\r\n\r\n"
    );
    send(server.address, request.as_bytes()).await
}

/// The token ids and the trailers of a stream of frames.
fn stream(frames: Vec<(u8, Vec<u8>)>) -> (Vec<u32>, String) {
    let (mut tokens, mut trailers, mut events) = (Vec::new(), None, 0);
    for (flags, content) in frames {
        assert!(trailers.is_none(), "nothing comes after the trailers");
        if flags == TRAILERS {
            trailers = Some(String::from_utf8(content).unwrap());
            continue;
        }
        assert_eq!(flags, 0);
        let response = GenerateStreamResponse::decode(content.as_slice()).unwrap();
        events += 1;
        assert_eq!(response.seq, events);
        if let Some(Event::Delta(delta)) = response.event {
            tokens.extend(delta.token_ids);
        }
    }
    (tokens, trailers.expect("trailers"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_comes_as_frames_and_its_status_as_the_last_one() {
    let server = Server::well().await;
    let prompt = ids(3, 20);
    let message = frame(&request(&prompt, 12));
    for content_type in ["application/grpc-web", "application/grpc-web+proto"] {
        let answer = call(&server, STREAM, content_type, "", &message).await;
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/grpc-web+proto")));
        let (tokens, trailers) = stream(frames(&answer.bytes().await));
        assert_eq!(tokens, expected(&prompt, 12));
        assert!(trailers.lines().any(|line| line.replace(' ', "") == "grpc-status:0"), "{trailers:?}");
    }
    server.idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_takes_text_only_gets_the_same_in_base64() {
    let server = Server::well().await;
    let prompt = ids(4, 20);
    let message = BASE64_STANDARD.encode(frame(&request(&prompt, 12)));
    let answer = call(&server, STREAM, "application/grpc-web-text", "", message.as_bytes()).await;
    assert_eq!(answer.header("content-type"), Some("application/grpc-web-text+proto"));
    let (tokens, trailers) = stream(frames(&text(&answer.bytes().await)));
    assert_eq!(tokens, expected(&prompt, 12));
    assert!(trailers.contains("grpc-status"), "{trailers:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_of_one_answer_works_too() {
    let server = Server::well().await;
    let answer = call(&server, LIST, "application/grpc-web+proto", "", &frame(&ListRequest {})).await;
    let frames = frames(&answer.bytes().await);
    assert_eq!(frames.iter().map(|(flags, _)| *flags).collect::<Vec<_>>(), [0, TRAILERS]);
    assert_eq!(ListResponse::decode(frames[0].1.as_slice()).unwrap().models[0].name, "fake");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_reaches_a_browser_with_its_details() {
    let server = Server::well().await;
    let message = frame(&request(&[], 3));
    let answer = call(&server, STREAM, "application/grpc-web+proto", "", &message).await;
    // A call that is refused has no body: its status is in the headers.
    assert_eq!((answer.status, answer.header("grpc-status")), (200, Some("3")));
    assert!(answer.header("grpc-message").is_some() && answer.header("grpc-status-details-bin").is_some());

    for path in ["/candlewick.v9.Nothing/List", "/candlewick.v1.Models/Nothing"] {
        let answer = call(&server, path, "application/grpc-web+proto", "", &message).await;
        assert_eq!((answer.status, answer.header("grpc-status")), (200, Some("12")), "{path}");
        assert!(answer.header("content-type").unwrap().starts_with("application/grpc-web"), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_message_ends_its_own_call_only() {
    let server = Server::well().await;
    let huge = [&[0, 0xff, 0xff, 0xff, 0xff][..], b"x"].concat();
    for (content_type, body) in [
        ("application/grpc-web+proto", &b"\x00\x00\x00\x00\x05\xff\xff\xff\xff\xff"[..]),
        ("application/grpc-web+proto", &huge),
        ("application/grpc-web+proto", b"\x00\x00"),
        ("application/grpc-web-text", b"%%%%"),
        ("application/grpc-web-text", b"AAA"),
    ] {
        let answer = call(&server, STREAM, content_type, "", body).await;
        let status = answer.header("grpc-status").map(str::to_owned);
        let body = answer.bytes().await;
        let body = if content_type.contains("text") { text(&body) } else { body };
        let status = status.unwrap_or_else(|| String::from_utf8_lossy(&body).into_owned());
        assert!(!status.is_empty() && status != "0" && !status.contains("grpc-status:0"), "{status:?}");
    }
    assert_eq!(get(server.address, STREAM).await.status, 400);
    let answer = call(&server, LIST, "application/grpc-web+proto", "", &frame(&ListRequest {})).await;
    assert_eq!(frames(&answer.bytes().await).len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tab_that_is_closed_frees_what_it_held() {
    let server = Server::well().await;
    let prompt = ids(5, 20);
    let endless = GenerateStreamRequest { ..request(&prompt, 900) };
    let mut answer = call(&server, STREAM, "application/grpc-web+proto", "", &frame(&endless)).await;
    assert!(answer.chunk_bytes().await.is_some());
    drop(answer);
    server.idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_a_site_that_is_listed_may_call_and_read_the_status() {
    let server = open_to(AllowedOrigins::List(vec![PAGE.into()])).await;
    let answer = preflight(&server, PAGE).await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, Some(PAGE)));
    assert!(answer.header("access-control-allow-methods").unwrap().contains("POST"));
    assert_eq!(answer.header("access-control-allow-headers"), Some("content-type,x-grpc-web,x-user-agent"));
    assert!(answer.header("access-control-max-age").is_some());

    let origin = format!("origin: {PAGE}\r\n");
    let answer = call(&server, LIST, "application/grpc-web+proto", &origin, &frame(&ListRequest {})).await;
    assert_eq!(answer.header("access-control-allow-origin"), Some(PAGE));
    let exposed = answer.header("access-control-expose-headers").unwrap();
    for name in ["grpc-status", "grpc-message", "grpc-status-details-bin"] {
        assert!(exposed.split(',').any(|listed| listed.trim() == name), "{name} is not in {exposed}");
    }
    // What a shared cache holds for one site is not for another.
    assert!(answer.headers.iter().any(|(name, value)| name == "vary" && value.to_lowercase().contains("origin")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_else_gets_leave_and_nobody_at_all_unless_asked_for() {
    let listed = open_to(AllowedOrigins::List(vec![PAGE.into()])).await;
    for origin in ["https://evil.example", "http://chat.example.org", "https://chat.example.org:8443", "null"] {
        assert_eq!(preflight(&listed, origin).await.header("access-control-allow-origin"), None, "{origin}");
    }
    let closed = Server::well().await;
    assert_eq!(preflight(&closed, PAGE).await.header("access-control-allow-origin"), None);
    let open = open_to(AllowedOrigins::Any).await;
    assert_eq!(preflight(&open, PAGE).await.header("access-control-allow-origin"), Some("*"));
    // The JSON faces are behind the same door.
    let origin = format!("GET /v1/models HTTP/1.1\r\nhost: localhost\r\norigin: {PAGE}\r\n\r\n");
    let answer = send(open.address, origin.as_bytes()).await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, Some("*")));
}

#[cfg(feature = "web")]
mod page {
    use super::*;

    async fn fetch(server: &Server, path: &str, headers: &str) -> Answer {
        send(server.address, format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n").as_bytes()).await
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_browser_gets_the_page_and_a_program_a_line() {
        let server = Server::well().await;
        let page = fetch(&server, "/", "accept: text/html,*/*;q=0.8\r\n").await;
        assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
        let policy = page.header("content-security-policy").unwrap().to_owned();
        assert!(policy.starts_with("default-src 'none'; script-src 'self';") && !policy.contains("unsafe"), "{policy}");
        assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
        assert!(page.text().await.starts_with("<!doctype html>"));
        assert!(fetch(&server, "/", "accept: */*\r\n").await.text().await.contains("/v1/models"));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn everything_that_the_page_names_is_served_and_nothing_beside_it() {
        let server = Server::well().await;
        let page = fetch(&server, "/", "accept: text/html\r\n").await.text().await;
        let named = page.split('"').filter(|word| ["app.js?", "app.css?", "icon.svg"].iter().any(|n| word.contains(n)));
        let named: Vec<_> = named.map(|name| format!("/{}", name.trim_start_matches("./"))).collect();
        assert!(named.len() >= 3, "{named:?}");
        for name in &named {
            let answer = fetch(&server, name, "").await;
            assert_eq!(answer.status, 200, "{name}");
            let caching = answer.header("cache-control").unwrap();
            assert_eq!(caching.contains("immutable"), name.contains('?'), "{name}: {caching}");
            assert!(answer.header("content-security-policy").is_some());
        }
        let stale = fetch(&server, "/app.js?v=00000000", "").await;
        assert_eq!(stale.header("cache-control"), Some("no-cache"));
        for name in ["/app.js.br", "/dist/app.js", "/app.js/", "/..%2fCargo.toml", "/package.json"] {
            assert_eq!(fetch(&server, name, "").await.status, 404, "{name}");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_a_browser_has_is_not_sent_again_and_what_it_has_not_comes_compressed() {
        let server = Server::well().await;
        let plain = fetch(&server, "/app.js", "").await;
        assert_eq!(plain.header("content-encoding"), None);
        let plain_etag = plain.header("etag").unwrap().to_owned();
        let plain = plain.bytes().await;
        for coding in ["br", "gzip"] {
            let headers = format!("accept-encoding: identity, {coding}\r\n");
            let answer = fetch(&server, "/app.js", &headers).await;
            assert_eq!((answer.status, answer.header("content-encoding")), (200, Some(coding)));
            assert!(answer.header("vary").unwrap().contains("accept-encoding"));
            let etag = answer.header("etag").unwrap().to_owned();
            assert_ne!(etag, plain_etag);
            assert!(answer.bytes().await.len() * 2 < plain.len(), "{coding}");
            let known = fetch(&server, "/app.js", &format!("{headers}if-none-match: \"x\", W/{etag}\r\n")).await;
            assert_eq!((known.status, known.header("etag")), (304, Some(etag.as_str())));
            let other = fetch(&server, "/app.js", &format!("{headers}if-none-match: {plain_etag}\r\n")).await;
            assert_eq!(other.status, 200);
        }
    }
}
