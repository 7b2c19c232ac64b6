//! Fetching one file over plain HTTP: it goes on where it broke off, and tries again for a while.
//!
//! Files are asked for by their commit and kept under the hub's tag, so what is asked for again is what was asked for before,
//! and a part needs no `If-Range`; a store that the hub sends us on to has tags of its own, and would begin anew. Files that the
//! hub keeps in its xet store come this way too: it sends us to a bridge that speaks HTTP.

use std::{
    cell::Cell,
    fs::{File, OpenOptions, remove_file},
    io::{self, Write},
    path::Path,
    sync::mpsc::SyncSender,
    time::Duration,
};

use reqwest::{
    Client, ClientBuilder, Method, Response, StatusCode, Url,
    header::{CONTENT_RANGE, ETAG, HeaderMap, LOCATION, RANGE, RETRY_AFTER},
    redirect::Policy,
};

use super::{
    DownloadProgress,
    cache::{create_folder_of, failed},
    choice::{RepoFile, size},
    name::is_plain,
};
use crate::{
    error::{Code, Error, Result},
    weights::shown,
};

/// Tries in a row that bring nothing, before it is given up; what is said then has the number in words.
const ATTEMPTS: u32 = 5;
const MAX_REDIRECTS: usize = 10;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection that brings nothing for so long is taken for broken.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

const USER_AGENT: &str = concat!("candlewick/", env!("CARGO_PKG_VERSION"));

/// A client for the hub's API, which gives up on connections as ours does.
pub(super) fn client() -> Result<Client> {
    build(patient())
}

fn patient() -> ClientBuilder {
    Client::builder().user_agent(USER_AGENT).connect_timeout(CONNECT_TIMEOUT).read_timeout(READ_TIMEOUT)
}

fn build(builder: ClientBuilder) -> Result<Client> {
    builder.build().map_err(|error| Error::internal(format!("cannot make a client of HTTP: {error}")))
}

/// Who is asked, and how.
pub(super) struct Hub {
    http: Client,
    endpoint: Url,
    token: Option<String>,
    retry_delay: Duration,
}

/// Why a try failed.
enum Failure {
    /// It will fail again.
    Lasting(Error),
    /// It may not; and whether it got further than the one before it.
    Passing { error: Error, moved: bool },
}

impl Failure {
    fn passing(error: Error) -> Self {
        Self::Passing { error, moved: false }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Lasting(error)
    }
}

impl Hub {
    /// Asks at `endpoint`, with `token` where there is one, and waits `retry_delay` after a first failure, twice as long after
    /// each that follows.
    pub(super) fn new(endpoint: &str, token: Option<String>, retry_delay: Duration) -> Result<Self> {
        let endpoint = Url::parse(endpoint).map_err(|error| Error::invalid("HF_ENDPOINT", error.to_string()))?;
        // Redirects are followed here, where the token is given to the hub alone.
        let http = build(patient().redirect(Policy::none()))?;
        Ok(Self { http, endpoint, token, retry_delay })
    }

    /// Where a file of a commit is.
    pub(super) fn url(&self, repository: &str, commit: &str, path: &str) -> Result<Url> {
        let mut url = self.endpoint.clone();
        let mut segments =
            url.path_segments_mut().map_err(|()| Error::invalid("HF_ENDPOINT", "is no address of a server"))?;
        segments.pop_if_empty().extend(repository.split('/')).extend(["resolve", commit]).extend(path.split('/'));
        drop(segments);
        Ok(url)
    }

    /// The tag that a file is kept under.
    pub(super) async fn etag(&self, url: &Url) -> Result<String> {
        let headers = self.persist(async || Ok(self.send(Method::HEAD, url, 0).await?.headers().clone())).await?;
        let tag = headers.get("x-linked-etag").or_else(|| headers.get(ETAG)).and_then(|tag| tag.to_str().ok());
        let tag = tag.map(|tag| tag.trim_start_matches("W/").trim_matches('"'));
        // It becomes the name of a file.
        let tag = tag.filter(|tag| is_plain(tag)).ok_or_else(|| {
            Error::new(Code::Unavailable, format!("the hub gives no tag of {url}: check HF_ENDPOINT"))
        })?;
        Ok(tag.to_owned())
    }

    /// Writes the file at `url` to `path`, after what is there of it already.
    ///
    /// # Errors
    /// `DataLoss` where more comes than was announced; `FailedPrecondition` where it cannot be written; what the hub refuses it
    /// with; `Unavailable` where it stays unreachable. What came stays, and the next call goes on from there.
    pub(super) async fn download(&self, url: &Url, file: &RepoFile, path: &Path, meter: &Meter) -> Result<()> {
        let mut part = Part::open(path, file, meter)?;
        self.persist(async || self.go_on(url, &mut part).await).await
    }

    /// Asks once for what is missing.
    async fn go_on(&self, url: &Url, part: &mut Part<'_>) -> Result<(), Failure> {
        let start = part.bytes;
        if part.is_whole() {
            return Ok(());
        }
        let mut response = match self.send(Method::GET, url, start).await {
            // There is nothing after what we have: it is not what we took it for.
            Err(Failure::Lasting(error)) if error.code == Code::DataLoss => {
                part.begin_anew()?;
                return Err(Failure::passing(error));
            }
            response => response?,
        };
        if response.status() != StatusCode::PARTIAL_CONTENT {
            // The whole file, as servers that know no ranges send it.
            part.begin_anew()?;
        } else if first_byte(response.headers()) != Some(start) {
            part.begin_anew()?;
            let error = Error::new(Code::Unavailable, format!("{url} gives bytes that were not asked for"));
            return Err(Failure::passing(error));
        }
        let broken = loop {
            match response.chunk().await {
                Ok(Some(bytes)) => part.write(&bytes)?,
                Ok(None) => break None,
                Err(error) => break Some(causes(&error)),
            }
        };
        if part.is_whole() {
            return Ok(());
        }
        let (file, here, of) = (shown(&part.file.path), part.bytes, part.file.size);
        let error = match broken {
            Some(cause) => {
                Error::new(Code::Unavailable, format!("{file}: broke off after {here} of {of} bytes ({cause})"))
            }
            None => {
                Error::new(Code::DataLoss, format!("{file}: ends after {here} bytes, but the hub's list says {of}"))
            }
        };
        Err(Failure::Passing { error, moved: part.has_moved() })
    }

    /// Tries until it works, cannot work, or has failed too often in a row.
    async fn persist<T>(&self, mut attempt: impl AsyncFnMut() -> Result<T, Failure>) -> Result<T> {
        let mut failures = 0;
        loop {
            let error = match attempt().await {
                Ok(value) => return Ok(value),
                Err(Failure::Lasting(error)) => return Err(error),
                Err(Failure::Passing { error, moved }) => {
                    failures = if moved { 1 } else { failures + 1 };
                    error
                }
            };
            if failures == ATTEMPTS {
                let advice = "nothing more came in five tries: run it again, and it goes on from there";
                return Err(Error { message: format!("{error}; {advice}"), ..error });
            }
            tracing::warn!("trying again: {error}");
            tokio::time::sleep(self.retry_delay * (1 << (failures - 1))).await;
        }
    }

    /// Sends one request, for the bytes from `start` on, and follows where it leads. Only the hub itself is shown the token.
    /// HEAD stops at the hub's last word: its headers, not those of its store, say what a file is.
    async fn send(&self, method: Method, url: &Url, start: u64) -> Result<Response, Failure> {
        let is_hub = |url: &Url| url.origin() == self.endpoint.origin();
        let mut url = url.clone();
        for _ in 0..MAX_REDIRECTS {
            let mut request = self.http.request(method.clone(), url.clone());
            if let Some(token) = self.token.as_ref().filter(|_| is_hub(&url)) {
                request = request.bearer_auth(token);
            }
            if start > 0 {
                request = request.header(RANGE, format!("bytes={start}-"));
            }
            let response = request.send().await.map_err(|error| {
                let advice = "check the connection and HF_ENDPOINT";
                Failure::passing(Error::new(Code::Unavailable, format!("{}; {advice}", causes(&error))))
            })?;
            if !response.status().is_redirection() {
                return judge(response);
            }
            let next = response.headers().get(LOCATION).and_then(|next| next.to_str().ok());
            let Some(next) = next.and_then(|next| url.join(next).ok()) else {
                return judge(response);
            };
            if method == Method::HEAD && !is_hub(&next) {
                return Ok(response);
            }
            url = next;
        }
        Err(Error::new(Code::Unavailable, format!("{url} is redirected in circles: check HF_ENDPOINT")).into())
    }
}

/// The response, if it says yes.
fn judge(response: Response) -> Result<Response, Failure> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let (code, advice) = match status {
        StatusCode::UNAUTHORIZED => (Code::Unauthenticated, "set HF_TOKEN to a token that may read it"),
        StatusCode::FORBIDDEN => {
            (Code::PermissionDenied, "accept the model's terms on its page, or use another HF_TOKEN")
        }
        StatusCode::NOT_FOUND => (Code::NotFound, "check the name of the file"),
        StatusCode::RANGE_NOT_SATISFIABLE => (Code::DataLoss, "it is shorter than what is here of it"),
        StatusCode::TOO_MANY_REQUESTS => (Code::ResourceExhausted, "come back later, or set HF_TOKEN"),
        _ => (Code::Unavailable, "try again later, or check HF_ENDPOINT"),
    };
    let mut address = response.url().clone();
    // What follows the path of a store's address is signed, and no matter of a log.
    address.set_query(None);
    let mut error = Error::new(code, format!("{address} says {status}; {advice}"));
    let after = response.headers().get(RETRY_AFTER).and_then(|after| after.to_str().ok()?.parse().ok());
    error.retry_after = after.map(Duration::from_secs);
    let is_passing =
        status.is_server_error() || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS);
    Err(if is_passing { Failure::passing(error) } else { error.into() })
}

/// The first byte that a partial response has, of `bytes 100-199/200`.
fn first_byte(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok()
}

/// An error with what it came from, without the address, which may be signed.
fn causes(error: &reqwest::Error) -> String {
    let mut causes = Vec::new();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        causes.push(cause.to_string());
        next = cause.source();
    }
    if causes.is_empty() { "the request failed".to_owned() } else { causes.join(": ") }
}

/// A file on its way.
struct Part<'a> {
    out: File,
    path: &'a Path,
    file: &'a RepoFile,
    meter: &'a Meter,
    /// That are here.
    bytes: u64,
    /// The most that were ever here.
    furthest: u64,
}

impl<'a> Part<'a> {
    fn open(path: &'a Path, file: &'a RepoFile, meter: &'a Meter) -> Result<Self> {
        let open = || -> io::Result<_> {
            create_folder_of(path)?;
            let out = OpenOptions::new().create(true).append(true).open(path)?;
            let bytes = out.metadata()?.len();
            Ok((out, bytes))
        };
        let (out, bytes) = open().map_err(|error| failed(path, &error))?;
        meter.add(bytes);
        let mut part = Self { out, path, file, meter, bytes, furthest: bytes };
        if bytes > file.size {
            part.begin_anew()?;
        }
        Ok(part)
    }

    fn is_whole(&self) -> bool {
        self.bytes == self.file.size
    }

    /// Whether it has come further than at the last question. It can say so only so often, whatever comes.
    fn has_moved(&mut self) -> bool {
        let has_moved = self.bytes > self.furthest;
        self.furthest = self.furthest.max(self.bytes);
        has_moved
    }

    fn begin_anew(&mut self) -> Result<()> {
        if self.bytes > 0 {
            self.out.set_len(0).map_err(|error| failed(self.path, &error))?;
            self.meter.take_back(self.bytes);
            self.bytes = 0;
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let more = bytes.len() as u64;
        if self.bytes.saturating_add(more) > self.file.size {
            // Nothing of it can be trusted.
            let _gone = remove_file(self.path);
            let (file, size) = (shown(&self.file.path), self.file.size);
            let why = "more comes than the hub's list says";
            return Err(Error::new(
                Code::DataLoss,
                format!("{file}: {why}, {size} bytes; it was deleted: run it again"),
            ));
        }
        self.out.write_all(bytes).map_err(|error| self.cannot_write(&error))?;
        self.bytes += more;
        self.meter.add(more);
        Ok(())
    }

    fn cannot_write(&self, error: &io::Error) -> Error {
        let (file, of) = (shown(&self.file.path), size(self.file.size));
        let advice =
            "make room or give another folder (HF_HUB_CACHE, --download-dir), and run it again: it goes on from there";
        Error::bad_file(self.path, "cache", format!("{error}, after {} of {of} of {file}; {advice}", size(self.bytes)))
    }
}

/// How far all files together are.
pub(super) struct Meter {
    bytes: Cell<u64>,
    total_bytes: u64,
    reports: SyncSender<DownloadProgress>,
}

impl Meter {
    pub(super) fn new(total_bytes: u64, reports: SyncSender<DownloadProgress>) -> Self {
        Self { bytes: Cell::new(0), total_bytes, reports }
    }

    fn progress(&self) -> DownloadProgress {
        DownloadProgress { bytes: self.bytes.get(), total_bytes: self.total_bytes }
    }

    pub(super) fn add(&self, bytes: u64) {
        self.bytes.set(self.bytes.get().saturating_add(bytes));
        // A full channel means that a report is on its way already.
        let _ = self.reports.try_send(self.progress());
    }

    pub(super) fn take_back(&self, bytes: u64) {
        self.bytes.set(self.bytes.get().saturating_sub(bytes));
        let _ = self.reports.try_send(self.progress());
    }

    /// The last report is waited with until there is room for it.
    pub(super) fn end(self) {
        let _ = self.reports.send(self.progress());
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    fn hub(endpoint: &str) -> Hub {
        Hub::new(endpoint, None, Duration::from_secs(1)).expect("a client")
    }

    #[tokio::test(start_paused = true)]
    async fn waits_double_until_something_comes() {
        let (begun, mut tries) = (Instant::now(), 0);
        let attempt = async || {
            tries += 1;
            Err::<(), _>(Failure::Passing { error: Error::new(Code::Unavailable, "cut"), moved: tries == 3 })
        };
        let error = hub("http://hub.invalid").persist(attempt).await.expect_err("never works");
        assert_eq!(error.code, Code::Unavailable);
        assert!(error.message.starts_with("cut; nothing more came in five tries"), "{error}");
        // 1 and 2, and after what came 1, 2, 4 and 8.
        assert_eq!((tries, begun.elapsed().as_secs()), (7, 18));
    }

    #[test]
    fn reports_that_nobody_takes_are_dropped_but_for_the_last() {
        let (reports, arriving) = std::sync::mpsc::sync_channel(1);
        let meter = Meter::new(6, reports);
        [1, 2].into_iter().for_each(|bytes| meter.add(bytes));
        meter.take_back(1);
        let ends = std::thread::spawn(move || meter.end());
        let arrived: Vec<_> = arriving.into_iter().map(|report| (report.bytes, report.total_bytes)).collect();
        ends.join().expect("no panic");
        assert_eq!(arrived, [(1, 6), (2, 6)]);
    }

    #[test]
    fn paths_are_put_into_addresses_as_they_are() {
        for (endpoint, url) in [
            ("https://hub.invalid", "https://hub.invalid/org/name/resolve/main/sub/a%20b%23.gguf"),
            ("http://proxy.invalid/hub/", "http://proxy.invalid/hub/org/name/resolve/main/sub/a%20b%23.gguf"),
        ] {
            assert_eq!(hub(endpoint).url("org/name", "main", "sub/a b#.gguf").expect("an address").as_str(), url);
        }
        assert_eq!(Hub::new("hub", None, Duration::ZERO).err().map(|error| error.code), Some(Code::InvalidArgument));
    }
}
