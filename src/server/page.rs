//! The chat page at `/`: a handful of files inside the program, built from `web/`.
//!
//! The page may load what this server serves and nothing else, run no script that is not one of its files, and be
//! framed by nobody. Files are asked for again each time and answered with 304 where they have not changed; `/app.js?v=…`,
//! as the page itself writes it, never changes and is not asked for again.

use std::sync::Arc;

use axum::{
    Router,
    extract::{RawQuery, State},
    http::{
        HeaderMap, HeaderName, HeaderValue, StatusCode,
        header::{
            ACCEPT, ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG,
            IF_NONE_MATCH, REFERRER_POLICY, VARY, X_CONTENT_TYPE_OPTIONS,
        },
    },
    response::{IntoResponse, Response},
    routing::get,
};

/// A file as it lies in the program: plain, and compressed where that is worth it.
struct File {
    name: &'static str,
    content_type: &'static str,
    plain: &'static [u8],
    /// By the names that `Accept-Encoding` has, the smallest first.
    compressed: &'static [(&'static str, &'static [u8])],
}

macro_rules! file {
    ($name:literal, $content_type:literal) => {
        File {
            name: $name,
            content_type: $content_type,
            plain: include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/web/dist/", $name)),
            compressed: &[
                ("br", include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/web/dist/", $name, ".br"))),
                ("gzip", include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/web/dist/", $name, ".gz"))),
            ],
        }
    };
}

/// All files. The first is the page.
static FILES: [File; 5] = [
    file!("index.html", "text/html; charset=utf-8"),
    file!("app.js", "text/javascript; charset=utf-8"),
    file!("app.css", "text/css; charset=utf-8"),
    file!("icon.svg", "image/svg+xml"),
    file!("THIRD-PARTY-LICENSES.txt", "text/plain; charset=utf-8"),
];

/// What the page may do. Trusted types make the browser refuse text as HTML that has not been through the sanitizer.
const CONTENT_SECURITY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'; trusted-types candlewick dompurify";
const OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");
const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

/// A file and its name for caches.
struct Served {
    file: &'static File,
    /// Of its content.
    hash: String,
    /// The query under which the page asks for it.
    version: Option<String>,
}

type Table = Arc<[Served]>;

/// The page and its files. What asks for `/` and does not take HTML gets the text of `plain`.
pub(super) fn routes(plain: &'static str) -> Router {
    let served = |file: &'static File| Served {
        file,
        hash: blake3::hash(file.plain).to_hex()[..32].to_owned(),
        version: version(FILES[0].plain, file.name),
    };
    let table: Table = FILES.iter().map(served).collect();
    let root = move |State(table): State<Table>, headers: HeaderMap| async move {
        let mut response = match takes_html(&headers) {
            true => answer(&table[0], None, &headers),
            false => plain.into_response(),
        };
        response.headers_mut().append(VARY, HeaderValue::from_static("accept"));
        response
    };
    let router = Router::new().route("/", get(root));
    let paths = FILES.iter().skip(1).map(|file| format!("/{}", file.name));
    paths.fold(router, |router, path| router.route(&path, get(asset))).with_state(table)
}

async fn asset(
    State(table): State<Table>,
    uri: axum::http::Uri,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    match table.iter().find(|served| uri.path().strip_prefix('/') == Some(served.file.name)) {
        Some(served) => answer(served, query.as_deref(), &headers),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

fn answer(served: &Served, query: Option<&str>, headers: &HeaderMap) -> Response {
    let accepted = headers.get(ACCEPT_ENCODING).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let compressed = served.file.compressed.iter().find(|(coding, _)| accepts(accepted, coding));
    let (coding, body) = compressed.map_or((None, served.file.plain), |&(coding, body)| (Some(coding), body));
    let etag = format!("\"{}{}\"", served.hash, coding.map(|coding| format!("-{coding}")).unwrap_or_default());
    let fixed = query.is_some() && query == served.version.as_deref();
    let caching = if fixed { "public, max-age=31536000, immutable" } else { "no-cache" };
    let unchanged = headers.get(IF_NONE_MATCH).and_then(|value| value.to_str().ok()).is_some_and(|known| {
        known.split(',').any(|known| known.trim().trim_start_matches("W/") == etag || known.trim() == "*")
    });
    let mut response = match unchanged {
        true => StatusCode::NOT_MODIFIED.into_response(),
        false => ([(CONTENT_TYPE, served.file.content_type)], body).into_response(),
    };
    let set = response.headers_mut();
    if let Ok(etag) = HeaderValue::from_str(&etag) {
        set.insert(ETAG, etag);
    }
    if let (Some(coding), false) = (coding, unchanged) {
        set.insert(CONTENT_ENCODING, HeaderValue::from_static(coding));
    }
    for (name, value) in [
        (CACHE_CONTROL, caching),
        (VARY, "accept-encoding"),
        (CONTENT_SECURITY_POLICY, CONTENT_SECURITY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (OPENER_POLICY, "same-origin"),
        (RESOURCE_POLICY, "same-origin"),
    ] {
        set.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Whether who asks is a browser that shows pages; programs get a line of text.
fn takes_html(headers: &HeaderMap) -> bool {
    headers.get_all(ACCEPT).iter().any(|value| value.to_str().is_ok_and(|accept| accept.contains("text/html")))
}

/// Whether `Accept-Encoding` names a coding and does not turn it down.
fn accepts(header: &str, coding: &str) -> bool {
    header.split(',').any(|offer| {
        let (name, weight) = offer.split_once(';').unwrap_or((offer, ""));
        let refused = weight.trim().strip_prefix("q=").and_then(|q| q.parse::<f32>().ok()).is_some_and(|q| q <= 0.0);
        name.trim().eq_ignore_ascii_case(coding) && !refused
    })
}

/// The query with which the page asks for a file: `v=…`.
fn version(page: &[u8], name: &str) -> Option<String> {
    let page = std::str::from_utf8(page).ok()?;
    let after = &page[page.find(&format!("{name}?"))? + name.len() + 1..];
    Some(after.chars().take_while(|&c| c.is_ascii_alphanumeric() || c == '=').collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_coding_is_taken_only_where_it_is_offered() {
        assert!(accepts("gzip, deflate, br", "br") && accepts("GZIP;q=0.5", "gzip"));
        assert!(!accepts("gzip;q=0, br", "gzip") && !accepts("", "gzip") && !accepts("brotli", "br"));
    }

    #[test]
    fn the_page_names_its_files_by_their_version() {
        for name in ["app.js", "app.css"] {
            let version = version(FILES[0].plain, name).unwrap();
            assert!(version.starts_with("v=") && version.len() > 8, "{version}");
        }
        assert_eq!(version(b"<a href=app.js>", "app.js"), None);
    }

    #[test]
    fn the_files_are_small_and_smaller_compressed() {
        let total: usize = FILES.iter().map(|file| file.plain.len()).sum();
        assert!(total < 1 << 20, "{total}");
        for file in &FILES {
            assert!(file.compressed.iter().all(|(_, body)| body.len() < file.plain.len()), "{}", file.name);
        }
    }
}
