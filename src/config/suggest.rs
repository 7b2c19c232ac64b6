//! What a misspelt name may have meant.

use std::path::Path;

/// How alike two names must be, from 0 to 1 (Jaro-Winkler), as clap judges flags.
const ALIKE: f64 = 0.7;
/// Entries of a folder that are looked at.
const MAX_ENTRIES: usize = 4096;

/// The most alike of the names, if one is alike enough.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let rated = known.into_iter().map(|known| (strsim::jaro_winkler(name, known), known));
    let best = rated.filter(|(alike, _)| *alike > ALIKE).max_by(|a, b| a.0.total_cmp(&b.0));
    best.map(|(_, known)| known)
}

/// For a path that is not there, what stands beside it with a name like its own.
pub(crate) fn nearest_path(path: &Path) -> Option<String> {
    if path.exists() {
        return None;
    }
    let folder = path.parent()?;
    let name = path.file_name()?.to_str()?;
    let entries = std::fs::read_dir(if folder.as_os_str().is_empty() { Path::new(".") } else { folder }).ok()?;
    let names = entries.take(MAX_ENTRIES).filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let names: Vec<_> = names.filter(|name| !name.starts_with('.')).collect();
    Some(folder.join(nearest(name, names.iter().map(String::as_str))?).display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_found_and_strangers_are_not() {
        let known = ["qwen3-0.6b", "llama-3.2-1b"];
        assert_eq!(nearest("qwen3-06b", known), Some("qwen3-0.6b"));
        assert_eq!(nearest("mistral", known), None);
        assert_eq!(nearest("x", []), None);
    }

    #[test]
    fn a_path_that_is_not_there_has_neighbours() {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model-q8.gguf");
        std::fs::write(&model, "").unwrap();
        let found = |name: &str| nearest_path(&folder.path().join(name));
        assert_eq!(found("model-q8.guf"), Some(model.display().to_string()));
        assert_eq!(found("zebra"), None);
        assert_eq!(found("model-q8.gguf"), None, "what is there is not misspelt");
        assert_eq!(found("no/such/folder"), None);
    }
}
