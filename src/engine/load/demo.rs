//! The model inside the program, which answers where none is named; see `models/demo`.

use super::Parts;
use crate::error::Result;

#[cfg(feature = "demo")]
pub(super) fn parts() -> Result<Parts> {
    use std::{borrow::Cow, path::Path};

    use crate::weights::gguf::Gguf;

    static DEMO: &[u8] = include_bytes!("../../../models/demo/demo.gguf");
    super::gguf_parts("demo".to_owned(), Gguf::from_bytes(Path::new("models/demo/demo.gguf"), Cow::Borrowed(DEMO))?)
}

#[cfg(not(feature = "demo"))]
pub(super) fn parts() -> Result<Parts> {
    use crate::error::Error;

    let why = "is not given, and this program was built without the feature `demo`, which has one inside";
    Err(Error::invalid("model", why))
}
