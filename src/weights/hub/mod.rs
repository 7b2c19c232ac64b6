//! Models by their name on the Hugging Face hub, kept in its cache, which other tools share.
//!
//! `org/name[:file-or-quantization][@revision]` (`name.rs`) is a commit with a list of files, which the hub or the cache knows;
//! some are taken (`choice.rs`), those that are not here are fetched (`download.rs`) and checked (`checks.rs`), and then the
//! cache has them (`cache.rs`). The hf-hub crate asks the hub what there is, and knows `HF_ENDPOINT`, `HF_HOME` and
//! `HF_HUB_CACHE`. It does not fetch: it neither goes on where a download broke off nor looks at what came.

mod cache;
mod checks;
mod choice;
mod download;
mod environment;
mod name;
mod refusal;

use std::{
    fs::{remove_file, rename},
    path::{Path, PathBuf},
    sync::mpsc::{SyncSender, sync_channel},
    time::Duration,
};

use futures::{TryStreamExt, stream};
use hf_hub::{HFClient, HFError, HFResult, repository::RepoTreeEntry};

pub use self::name::short_name;
use self::{
    cache::{Cache, etag_of, failed, is_commit},
    checks::{check, is_there},
    choice::{Choice, RepoFile, choose},
    download::{Hub, Meter},
    name::{HubName, is_relative},
    refusal::{explain, is_unreachable},
};
use crate::{
    config::{Secret, suggest::nearest},
    error::{Code, Error, Result},
};

/// Files of a repository that are listed.
const MAX_FILES: usize = 1 << 16;

/// Files that come at once: stores give one connection less than a line holds.
const CONCURRENT_FILES: usize = 4;

/// Progress reports that may wait for their reader; more are dropped, as each supersedes those before it.
const PROGRESS_CAPACITY: usize = 16;

/// Where to look, and for what.
#[derive(Clone, Debug)]
pub struct HubOptions {
    /// Branch, tag or commit, where the name has none; `main` without either.
    pub revision: Option<String>,
    /// Take only what the cache holds, as with `HF_HUB_OFFLINE`.
    pub offline: bool,
    /// Check what the cache holds too, instead of what is downloaded alone: that costs reading it.
    pub verify: bool,
    /// Leave out the safetensors of a directory, for who wants what stands beside them.
    pub without_weights: bool,
    /// In place of `HF_ENDPOINT` or the public hub.
    pub endpoint: Option<String>,
    /// In place of `HF_TOKEN` or the file that logging in leaves.
    pub token: Option<Secret>,
    /// In place of `HF_HUB_CACHE` or the usual folder.
    pub cache_dir: Option<PathBuf>,
    /// What a model shall fit into, where there is a choice.
    pub memory_bytes: Option<u64>,
    /// What is waited after a download broke off; twice as long each time that it does again at once.
    pub retry_delay: Duration,
}

impl Default for HubOptions {
    fn default() -> Self {
        Self {
            revision: None,
            offline: false,
            verify: false,
            without_weights: false,
            endpoint: None,
            token: None,
            cache_dir: None,
            memory_bytes: None,
            retry_delay: Duration::from_secs(1),
        }
    }
}

/// How far a download is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DownloadProgress {
    /// Bytes here.
    pub bytes: u64,
    /// Bytes in all, as far as is known.
    pub total_bytes: u64,
}

/// A model that is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The folder of its snapshot, or its GGUF file: of a split one, the first part.
    pub path: PathBuf,
    /// What was taken of the repository, why, and what else there is.
    pub why: String,
}

/// Finds a model of the hub, `org/name[:file-or-quantization][@revision]`, downloading what the cache does not hold. Where the
/// hub cannot be reached, an earlier download serves. Blocks; `progress` is called on this thread as bytes arrive.
///
/// # Errors
/// `InvalidArgument` where the name cannot be one, `NotFound`, `Unauthenticated` and `PermissionDenied` as the hub says,
/// `FailedPrecondition` where the cache does not hold it and may not ask, the repository is none that can be served, or the
/// disk is full, `DataLoss` where a file is not what the hub announced, `Unavailable` where the hub cannot be reached.
pub fn resolve(model: &str, options: &HubOptions, progress: &mut dyn FnMut(DownloadProgress)) -> Result<Found> {
    let name = HubName::parse(model)?;
    let revision = name.revision(options.revision.as_deref())?;
    let root = options.cache_dir.clone().unwrap_or_else(hf_hub::resolve_cache_dir);
    let search = &Search { model, name, revision, cache: Cache::new(root, &name), options };
    if options.offline || environment::is_offline() {
        return search.in_cache();
    }
    let (reports, arriving) = sync_channel(PROGRESS_CAPACITY);
    // A thread of its own: this one reports progress, and may be a runtime's.
    std::thread::scope(|scope| {
        let worker = scope.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(|error| Error::internal(format!("cannot start the download: {error}")))?;
            runtime.block_on(search.on_hub(reports))
        });
        // Ends when the download drops its end.
        for report in arriving {
            progress(report);
        }
        worker.join().unwrap_or_else(|_| Err(Error::internal("the download panicked")))
    })
}

/// What is looked for.
struct Search<'a> {
    /// As it was asked for.
    model: &'a str,
    name: HubName<'a>,
    revision: &'a str,
    cache: Cache,
    options: &'a HubOptions,
}

impl Search<'_> {
    async fn on_hub(&self, reports: SyncSender<DownloadProgress>) -> Result<Found> {
        let options = self.options;
        let token = options.token.as_ref().map(|token| token.reveal().to_owned()).or_else(environment::token);
        let mut builder = HFClient::builder().client(download::client()?).cache_dir(self.cache.root());
        builder = builder.retry_base_delay(options.retry_delay / 10);
        if let Some(endpoint) = &options.endpoint {
            builder = builder.endpoint(endpoint);
        }
        if let Some(token) = &token {
            builder = builder.token(token);
        }
        let client = builder.build().map_err(|error| explain(self.model, &error))?;
        let (commit, files) = match self.list(&client).await {
            Ok(listed) => listed,
            Err(error) if is_unreachable(&error) => {
                let unreachable = explain(self.model, &error);
                let found = self.in_cache().map_err(|_| unreachable.clone())?;
                tracing::warn!("what was downloaded before serves: {unreachable}");
                return Ok(found);
            }
            Err(error) => return Err(explain(self.model, &error)),
        };
        let found = async {
            let choice = self.choose(&files)?;
            let hub = Hub::new(client.endpoint(), token, options.retry_delay)?;
            let meter = Meter::new(choice.bytes(), reports);
            let wanted = stream::iter(choice.files.iter().copied().map(Ok::<_, Error>));
            wanted.try_for_each_concurrent(CONCURRENT_FILES, |file| self.fetch(&hub, &commit, file, &meter)).await?;
            meter.end();
            // Others may have found the weights where the revision was until now.
            let left_out = self.options.without_weights && choice.lacks_weights();
            if !left_out || self.cache.commit(self.revision).is_none() {
                self.cache.write_ref(self.revision, &commit)?;
            }
            Ok::<_, Error>(self.found(&choice, &commit))
        };
        found.await.map_err(|error| error.context(format_args!("model {}", self.model)))
    }

    fn choose<'a>(&self, files: &'a [RepoFile]) -> Result<Choice<'a>> {
        let choice = choose(&self.name, files, self.options.memory_bytes)?;
        Ok(if self.options.without_weights { choice.without_weights() } else { choice })
    }

    /// The commit that the revision is, and its files.
    async fn list(&self, client: &HFClient) -> HFResult<(String, Vec<RepoFile>)> {
        let repository = client.model(self.name.owner, self.name.name);
        let info = repository.info().revision(self.revision).expand(vec!["sha".to_owned()]).send().await?;
        let commit = info.sha.filter(|commit| is_commit(commit));
        let commit = commit.ok_or_else(|| HFError::malformed_response("the revision's commit"))?;
        let tree = repository.list_tree().revision(commit.as_str()).recursive(true).limit(MAX_FILES).send()?;
        let entries: Vec<RepoTreeEntry> = tree.try_collect().await?;
        let file = |entry| match entry {
            RepoTreeEntry::File { path, size, .. } if is_relative(&path) => Some(RepoFile { path, size }),
            _ => None,
        };
        let mut files: Vec<_> = entries.into_iter().filter_map(file).collect();
        files.sort();
        Ok((commit, files))
    }

    /// Makes a file of a commit part of the cache, if it is not yet.
    async fn fetch(&self, hub: &Hub, commit: &str, file: &RepoFile, meter: &Meter) -> Result<()> {
        let link = self.cache.snapshot(commit).join(&file.path);
        if is_there(&link, file.size) {
            match self.verify(&link, file).await {
                Ok(()) => {
                    meter.add(file.size);
                    return Ok(());
                }
                Err(error) => {
                    tracing::warn!("downloading again: {error}");
                    let blob = link.canonicalize().unwrap_or_else(|_| link.clone());
                    remove_file(&blob).map_err(|error| failed(&blob, &error))?;
                }
            }
        }
        let url = hub.url(&self.name.repository(), commit, &file.path)?;
        let etag = hub.etag(&url).await?;
        let _alone = self.cache.lock(&etag).await?;
        let blob = self.cache.blob(&etag);
        if is_there(&blob, file.size) {
            meter.add(file.size);
        } else {
            let incomplete = self.cache.incomplete(&etag);
            hub.download(&url, file, &incomplete, meter).await?;
            if let Err(error) = check_aside(&incomplete, file, &etag).await {
                if error.code == Code::DataLoss {
                    remove_file(&incomplete).map_err(|error| failed(&incomplete, &error))?;
                    let advice =
                        "it was deleted: run it again, and if it stays so, the hub or what stands between is at fault";
                    return Err(Error::new(error.code, format!("{error}; {advice}")));
                }
                return Err(error);
            }
            rename(&incomplete, &blob).map_err(|error| failed(&blob, &error))?;
        }
        self.cache.link(commit, &file.path, &etag)
    }

    /// Checks a file that the cache has, where that was asked for.
    async fn verify(&self, link: &Path, file: &RepoFile) -> Result<()> {
        match etag_of(link).filter(|_| self.options.verify) {
            Some(etag) => check_aside(link, file, &etag).await,
            None => Ok(()),
        }
    }

    /// Looks in the cache alone.
    fn in_cache(&self) -> Result<Found> {
        let model = self.model;
        let advice =
            "run once without offline mode (--offline, HF_HUB_OFFLINE), or give the path of a folder or .gguf file";
        let missing = |what: String| Error::new(Code::FailedPrecondition, format!("model {model}: {what}; {advice}"));
        let Some(commit) = self.cache.commit(self.revision) else {
            let (revision, root) = (self.revision, self.cache.root().display());
            let known = self.cache.models();
            let name = self.name.repository();
            let alike = nearest(&name, known.iter().map(String::as_str)).filter(|alike| *alike != name);
            let alike = alike.map_or_else(String::new, |alike| format!(", but {alike} was"));
            return Err(missing(format!("its revision {revision} has not been downloaded to {root}{alike}")));
        };
        let files = self.cache.files(&commit);
        let choice = self.choose(&files).map_err(|error| missing(format!("of what has been downloaded, {error}")))?;
        if choice.lacks_weights() && !self.options.without_weights {
            return Err(missing(format!("of what has been downloaded, revision {} has no weights", self.revision)));
        }
        let found = self.found(&choice, &commit);
        for file in choice.files.iter().filter(|_| self.options.verify) {
            let path = self.cache.snapshot(&commit).join(&file.path);
            if let Some(etag) = etag_of(&path) {
                check(&path, file, &etag).map_err(|error| error.context(format_args!("model {model}")))?;
            }
        }
        Ok(found)
    }

    fn found(&self, choice: &Choice<'_>, commit: &str) -> Found {
        let folder = self.cache.snapshot(commit);
        let path = choice.gguf.map_or_else(|| folder.clone(), |file| folder.join(file));
        Found { path, why: format!("{}: {}", self.name.repository(), choice.why) }
    }
}

/// Checks a file while others come.
async fn check_aside(path: &Path, file: &RepoFile, etag: &str) -> Result<()> {
    let (path, file, etag) = (path.to_owned(), file.clone(), etag.to_owned());
    let checked = tokio::task::spawn_blocking(move || check(&path, &file, &etag));
    checked.await.unwrap_or_else(|error| Err(Error::internal(format!("checking panicked: {error}"))))
}
