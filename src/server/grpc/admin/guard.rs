//! [`check_operator`](access::check_operator) for calls of gRPC.

use axum::http::Extensions;
use tonic::metadata::MetadataMap;

use crate::{error::Result, server::access};

/// Whether the caller may do what concerns everybody.
///
/// # Errors
/// `PermissionDenied`.
pub(crate) fn check_operator(metadata: &MetadataMap, extensions: &Extensions) -> Result<()> {
    access::check_operator(metadata.as_ref(), extensions)
}
