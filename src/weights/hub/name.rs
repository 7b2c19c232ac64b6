//! What a model of the hub is called: `org/name[:file-or-quantization][@revision]`.

use crate::error::{Error, Result};

/// A name, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HubName<'a> {
    pub(super) owner: &'a str,
    pub(super) name: &'a str,
    /// What is wanted of the repository; it is chosen where there is none.
    pub(super) wanted: Option<Wanted<'a>>,
    /// Branch, tag or commit.
    pub(super) revision: Option<&'a str>,
}

/// Part of a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted<'a> {
    /// A GGUF file by its path; of a split one, any part.
    File(&'a str),
    /// A GGUF file by what its name says of its numbers, as `Q4_K_M`.
    Quantization(&'a str),
}

impl<'a> HubName<'a> {
    /// Takes a name apart. The first `@` begins the revision, which may have slashes (`refs/pr/1`); `/file.gguf` stands for
    /// `:file.gguf`.
    ///
    /// # Errors
    /// `InvalidArgument` for what cannot be one, or could lead out of the cache.
    pub(super) fn parse(model: &'a str) -> Result<Self> {
        let wrong = |why: &str| {
            let message = format!("{model:?} is neither a path that exists nor a model of the hub: {why}");
            Error::invalid("model", message)
        };
        let (place, revision) = match model.split_once('@') {
            Some((place, revision)) => (place, Some(revision)),
            None => (model, None),
        };
        let (owner, rest) = place.split_once('/').ok_or_else(|| wrong("a hub model is org/name"))?;
        let (name, wanted) = match rest.find([':', '/']) {
            Some(at) => (&rest[..at], Some(&rest[at..])),
            None => (rest, None),
        };
        if !is_plain(owner) || !is_plain(name) {
            return Err(wrong("a hub model is org/name, of letters, digits, '-', '_' and '.'"));
        }
        let wanted = match wanted.map(|wanted| wanted.split_at(1)) {
            None => None,
            Some((_, file)) if is_gguf(file) && is_relative(file) => Some(Wanted::File(file)),
            Some((":", word)) if is_plain(word) && !is_gguf(word) => Some(Wanted::Quantization(word)),
            Some(_) => {
                return Err(wrong("after org/name: stands a .gguf file of it, or a quantization such as Q4_K_M"));
            }
        };
        if revision.is_some_and(|revision| !is_relative(revision)) {
            return Err(wrong("after @ stands a branch, a tag or a commit"));
        }
        Ok(Self { owner, name, wanted, revision })
    }

    /// The revision that is meant, where a flag may give one too.
    ///
    /// # Errors
    /// `InvalidArgument` where they differ, or the flag's cannot be one.
    pub(super) fn revision<'r>(&self, flag: Option<&'r str>) -> Result<&'r str>
    where
        'a: 'r,
    {
        match (self.revision, flag) {
            (None, None) => Ok("main"),
            (Some(own), None) => Ok(own),
            (_, Some(flag)) if !is_relative(flag) => {
                Err(Error::invalid("revision", format!("{flag:?} is no branch, tag or commit")))
            }
            (Some(own), Some(flag)) if own != flag => {
                Err(Error::invalid("revision", format!("is {flag:?}, but the model's name says @{own}: leave one out")))
            }
            (_, Some(flag)) => Ok(flag),
        }
    }

    /// What it is called in messages and in the hub's addresses.
    pub(super) fn repository(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }
}

/// What a model of the hub is called by requests unless something else is said: the repository's name, with the quantization
/// where one was asked for, or the stem of its file. None for what is no name of the hub.
#[must_use]
pub fn short_name(model: &str) -> Option<String> {
    let HubName { name, wanted, .. } = HubName::parse(model).ok()?;
    Some(match wanted {
        None => name.to_owned(),
        Some(Wanted::Quantization(quantization)) => format!("{name}:{quantization}"),
        Some(Wanted::File(file)) => {
            let file = file.rsplit('/').next().unwrap_or(file);
            file[..file.len() - GGUF.len()].to_owned()
        }
    })
}

const GGUF: &str = ".gguf";

/// Whether a file is named as a GGUF file is.
pub(super) fn is_gguf(path: &str) -> bool {
    let end = path.len().checked_sub(GGUF.len()).filter(|&end| end > 0).and_then(|end| path.get(end..));
    end.is_some_and(|end| end.eq_ignore_ascii_case(GGUF))
}

/// Whether a word is one that the hub allows in names, and so can name a file or a folder.
pub(super) fn is_plain(part: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !part.is_empty() && !part.starts_with('.') && !part.contains("..") && part.bytes().all(allowed)
}

/// Whether a path stays inside the folder that it is joined to.
pub(super) fn is_relative(path: &str) -> bool {
    !path.contains(['\\', ':', '\0']) && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    #[test]
    fn names_are_taken_apart() {
        let id = |wanted, revision| HubName { owner: "org", name: "name", wanted, revision };
        let (file, quantization) = (|file| Some(Wanted::File(file)), |name| Some(Wanted::Quantization(name)));
        for (model, expected) in [
            ("org/name", id(None, None)),
            ("org/name:file.gguf", id(file("file.gguf"), None)),
            ("org/name/file.gguf", id(file("file.gguf"), None)),
            ("org/name:sub/file.GGUF", id(file("sub/file.GGUF"), None)),
            ("org/name:Q4_K_M", id(quantization("Q4_K_M"), None)),
            ("org/name:ud-q4_k_xl", id(quantization("ud-q4_k_xl"), None)),
            ("org/name@main", id(None, Some("main"))),
            ("org/name@refs/pr/1", id(None, Some("refs/pr/1"))),
            ("org/name:Q4_K_M@v1.0", id(quantization("Q4_K_M"), Some("v1.0"))),
            ("org/name:sub/file.gguf@refs/pr/1", id(file("sub/file.gguf"), Some("refs/pr/1"))),
        ] {
            assert_eq!(HubName::parse(model).expect("a good name"), expected, "{model}");
        }
        let other = HubName { owner: "Qwen", name: "Qwen3-0.6B", wanted: None, revision: None };
        assert_eq!(HubName::parse("Qwen/Qwen3-0.6B").expect("a good name"), other);
    }

    #[test]
    fn names_that_would_leave_the_cache_are_refused() {
        for model in [
            "name",
            "",
            "/",
            "../x",
            "org/..",
            "org/.hidden",
            "org/a..b",
            "/etc/passwd",
            "org/na me",
            "org/name:",
            "org/name:a/b",
            "org/name:.gguf",
            "org/name/Q4_K_M",
            "org/name/../../x.gguf",
            "org/name:/x.gguf",
            r"org/name:..\x.gguf",
            "org/name/",
            "org/name@",
            "org/name@../x",
            "org/name@/x",
            "org/name@a:b",
        ] {
            assert_eq!(HubName::parse(model).expect_err("a bad name").code, Code::InvalidArgument, "{model}");
        }
    }

    #[test]
    fn a_revision_is_said_once() {
        let revision = |model: &'static str, flag| HubName::parse(model).expect("a good name").revision(flag);
        assert_eq!(revision("org/name", None).expect("a default"), "main");
        assert_eq!(revision("org/name@v1", None).expect("its own"), "v1");
        assert_eq!(revision("org/name", Some("v2")).expect("the flag's"), "v2");
        assert_eq!(revision("org/name@v1", Some("v1")).expect("the same"), "v1");
        for (model, flag) in [("org/name@v1", "v2"), ("org/name", "../../x")] {
            assert_eq!(revision(model, Some(flag)).expect_err("is refused").code, Code::InvalidArgument, "{model}");
        }
    }

    #[test]
    fn requests_call_it_by_a_short_name() {
        for (model, name) in [
            ("org/name", Some("name")),
            ("org/name:Q4_K_M@refs/pr/1", Some("name:Q4_K_M")),
            ("org/name:sub/file.gguf@main", Some("file")),
            ("./org/name", None),
            ("some/deep/folder", None),
            ("model.gguf", None),
        ] {
            assert_eq!(short_name(model).as_deref(), name, "{model}");
        }
    }
}
