//! Who runs the server, among those who call over gRPC.

use axum::http::Extensions;
use tonic::metadata::MetadataMap;

use crate::{
    error::Result,
    server::{access, models::Reader},
};

/// Whether the caller may do what concerns everybody.
///
/// # Errors
/// `PermissionDenied`.
pub(crate) fn check_operator(metadata: &MetadataMap, extensions: &Extensions) -> Result<()> {
    access::check_operator(metadata.as_ref(), extensions)
}

/// Whom a list of models is for.
pub(crate) fn reader(metadata: &MetadataMap, extensions: &Extensions) -> Reader {
    match access::check_reader(metadata.as_ref(), extensions) {
        Ok(()) => Reader::Operator,
        Err(_) => Reader::Anybody,
    }
}
