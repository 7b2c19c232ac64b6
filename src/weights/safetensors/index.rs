//! The index of weights that are split into several safetensors files.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Component, Path},
};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};

use crate::{
    error::{Error, Result},
    weights::{file::read_small, shown},
};

/// The largest index that is read; those of the largest models on the hub have some ten megabytes.
const MAX_INDEX_BYTES: u64 = 64 << 20;

/// Reads an index: the files it names, each with the tensors it is to hold.
///
/// # Errors
/// `FailedPrecondition` that names the field: no `weight_map`, a tensor twice, a file that is no plain name of a file
/// in the same directory.
pub(super) fn read(path: &Path) -> Result<BTreeMap<String, Vec<String>>> {
    let bytes = read_small(path, MAX_INDEX_BYTES)?;
    let index: Index = serde_json::from_slice(&bytes)
        .map_err(|error| Error::bad_file(path, "weight_map", shown(&error.to_string())))?;
    for (file, names) in &index.weight_map.0 {
        if !is_plain_name(file) {
            let field = format!("weight_map: {}", names.first().map(|name| shown(name)).unwrap_or_default());
            let why = format!("names {}, which is no plain name of a file beside the index", shown(file));
            return Err(Error::bad_file(path, field, why));
        }
    }
    Ok(index.weight_map.0)
}

/// Whether joining the name to a directory gives a file in that directory, on any system.
fn is_plain_name(file: &str) -> bool {
    let mut components = Path::new(file).components();
    let one = matches!((components.next(), components.next()), (Some(Component::Normal(_)), None));
    one && !file.contains(['/', '\\', ':', '\0'])
}

#[derive(Deserialize)]
struct Index {
    weight_map: WeightMap,
}

/// The tensors of each file; a tensor named twice is an error.
struct WeightMap(BTreeMap<String, Vec<String>>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WeightMapVisitor;
        impl<'de> Visitor<'de> for WeightMapVisitor {
            type Value = WeightMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object from tensors to files")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
                let mut file_of = BTreeMap::new();
                while let Some((name, file)) = map.next_entry::<String, String>()? {
                    if file_of.contains_key(&name) {
                        return Err(A::Error::custom(format!("names tensor {} twice", shown(&name))));
                    }
                    file_of.insert(name, file);
                }
                let mut names_of = BTreeMap::<String, Vec<String>>::new();
                for (name, file) in file_of {
                    names_of.entry(file).or_default().push(name);
                }
                Ok(WeightMap(names_of))
            }
        }
        deserializer.deserialize_map(WeightMapVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(index: &str) -> String {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("index.json");
        std::fs::write(&path, index).expect("is written");
        read(&path).expect_err("a bad index").message
    }

    #[test]
    fn a_file_outside_the_directory_is_refused() {
        for file in ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "", "c:x", r"..\\x"] {
            let message = error(&format!(r#"{{"weight_map":{{"t":"{file}"}}}}"#));
            assert!(message.contains("index.json: weight_map: t: names"), "{file}: {message}");
        }
    }

    #[test]
    fn a_tensor_named_twice_and_a_missing_map_are_refused() {
        assert!(error(r#"{"weight_map":{"t":"a","t":"b"}}"#).contains("weight_map: names tensor t twice"));
        assert!(error(r#"{"metadata":{}}"#).contains("weight_map: missing field `weight_map`"));
        assert!(error("[").contains("weight_map: EOF"));
    }
}
