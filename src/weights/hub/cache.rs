//! The cache that Hugging Face's tools share: `models--org--name` with `blobs` by their tags, `snapshots` of links into them,
//! `refs` that say which commit a branch was, and `.locks` beside it.
//!
//! Layout: <https://huggingface.co/docs/huggingface_hub/guides/manage-cache>. A ref is written when all files of a download are
//! here, so that what it names is whole; one that left out the weights writes it only where there is none.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    choice::RepoFile,
    name::{HubName, is_plain, is_relative},
};
use crate::error::Error;

/// How often a lock is tried that somebody else holds.
const LOCK_POLL: Duration = Duration::from_millis(100);
/// Files of a snapshot, and models, that are looked at.
const MAX_ENTRIES: usize = 1 << 16;

/// One model's part of it.
pub(super) struct Cache {
    root: PathBuf,
    folder: String,
}

impl Cache {
    pub(super) fn new(root: PathBuf, name: &HubName<'_>) -> Self {
        Self { root, folder: format!("models--{}--{}", name.owner, name.name) }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    fn join(&self, part: &str) -> PathBuf {
        self.root.join(&self.folder).join(part)
    }

    /// The commit that a revision is, or was when it was last downloaded, where files of it are here.
    pub(super) fn commit(&self, revision: &str) -> Option<String> {
        let commit = if is_commit(revision) {
            revision.to_owned()
        } else {
            fs::read_to_string(self.join("refs").join(revision)).ok()?.trim().to_owned()
        };
        (is_plain(&commit) && self.snapshot(&commit).is_dir()).then_some(commit)
    }

    /// Remembers which commit a revision is.
    pub(super) fn write_ref(&self, revision: &str, commit: &str) -> Result<(), Error> {
        if revision == commit {
            return Ok(());
        }
        let path = self.join("refs").join(revision);
        create_folder_of(&path).and_then(|()| fs::write(&path, commit)).map_err(|error| failed(&path, &error))
    }

    /// The folder of a commit's files.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.join("snapshots").join(commit)
    }

    /// A file by its tag.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.join("blobs").join(etag)
    }

    /// Where a file grows until it is whole, under its lock.
    pub(super) fn incomplete(&self, etag: &str) -> PathBuf {
        self.join("blobs").join(format!("{etag}.incomplete"))
    }

    /// Waits until nobody else downloads that file; over when the lock is dropped, or its process has ended.
    pub(super) async fn lock(&self, etag: &str) -> Result<File, Error> {
        let path = self.root.join(".locks").join(&self.folder).join(format!("{etag}.lock"));
        acquire(&path).await.map_err(|error| failed(&path, &error))
    }

    /// Makes the blob of that tag a file of a snapshot.
    pub(super) fn link(&self, commit: &str, path: &str, etag: &str) -> Result<(), Error> {
        let link = self.snapshot(commit).join(path);
        if etag_of(&link).as_deref() == Some(etag) {
            // Somebody may be reading it.
            return Ok(());
        }
        let make = || -> io::Result<()> {
            create_folder_of(&link)?;
            match fs::remove_file(&link) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            match self.point(&link, path, etag) {
                // Somebody else made the same.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                made => made,
            }
        };
        make().map_err(|error| failed(&link, &error))
    }

    #[cfg(unix)]
    fn point(&self, link: &Path, path: &str, etag: &str) -> io::Result<()> {
        // Out of the file's folders, its commit's and `snapshots`.
        let up = "../".repeat(path.matches('/').count() + 2);
        std::os::unix::fs::symlink(format!("{up}blobs/{etag}"), link)
    }

    /// Links take privileges elsewhere.
    #[cfg(not(unix))]
    fn point(&self, link: &Path, _path: &str, etag: &str) -> io::Result<()> {
        fs::hard_link(self.blob(etag), link)
    }

    /// The files of a commit that are here and whole, by their paths.
    pub(super) fn files(&self, commit: &str) -> Vec<RepoFile> {
        let root = self.snapshot(commit);
        let (mut folders, mut files) = (vec![root.clone()], Vec::new());
        while let Some(folder) = folders.pop() {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            for path in entries.map(|entry| entry.path()).take(MAX_ENTRIES - files.len()) {
                // Of what a link leads to, so that one which leads nowhere is no file.
                let Ok(metadata) = path.metadata() else { continue };
                let name = path.strip_prefix(&root).ok().and_then(Path::to_str).filter(|name| is_relative(name));
                match name {
                    Some(_) if metadata.is_dir() && !path.is_symlink() => folders.push(path),
                    Some(name) if metadata.is_file() => {
                        files.push(RepoFile { path: name.to_owned(), size: metadata.len() });
                    }
                    _ => {}
                }
            }
        }
        files.sort();
        files
    }

    /// The models that are here, as org/name.
    pub(super) fn models(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten().take(MAX_ENTRIES);
        let name = |folder: String| folder.strip_prefix("models--").map(|name| name.replacen("--", "/", 1));
        entries.filter_map(|entry| name(entry.file_name().into_string().ok()?)).collect()
    }
}

async fn acquire(path: &Path) -> io::Result<File> {
    create_folder_of(path)?;
    let lock = File::create(path)?;
    let mut waits = false;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) => {
                if !std::mem::replace(&mut waits, true) {
                    tracing::warn!("waiting for another download of the same file, which holds {}", path.display());
                }
                tokio::time::sleep(LOCK_POLL).await;
            }
        }
    }
}

/// The tag that a file of a snapshot is kept under, where it is a link.
pub(super) fn etag_of(file: &Path) -> Option<String> {
    Some(fs::read_link(file).ok()?.file_name()?.to_str()?.to_owned())
}

/// Whether a revision is a whole commit, which never changes.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Makes the folder that a file shall lie in.
pub(super) fn create_folder_of(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}

/// What could not be done in the cache, and what to look at.
pub(super) fn failed(path: &Path, error: &io::Error) -> Error {
    let advice = "check the cache's folder (HF_HOME, HF_HUB_CACHE, --download-dir) and its free space";
    Error::bad_file(path, "cache", format!("{error}; {advice}"))
}
