//! What the two streaming calls have in common: a stream that ends with its connection, or one that outlives it.

use prost::Message as _;
use tonic::codegen::BoxStream;

use super::{
    Backend, FieldPaths,
    resumable::{Key, Resumables},
    stream::{self, Teller, Telling},
    told::Told,
};
use crate::{
    engine::Request,
    error::{Error, Result},
    proto::candlewick::v1 as wire,
    server::{access::Caller, backend::name},
};

/// What a call asks of its stream.
pub(super) struct Wishes {
    heartbeat: std::time::Duration,
    resumable: bool,
    key: Option<Key>,
}

impl Wishes {
    /// Of the options of a call that streams. `request` is what a repetition must equal.
    ///
    /// # Errors
    /// `InvalidArgument` with the field's path.
    pub(super) fn of_stream(
        backend: &Backend,
        options: Option<&wire::RequestOptions>,
        request: impl FnOnce() -> String,
    ) -> Result<Self> {
        let key = options.and_then(|options| options.idempotency_key.clone()).filter(|key| !key.is_empty());
        let key = key.map(|key| name("options.idempotency_key", key)).transpose()?;
        let resumable = options.and_then(|options| options.resumable).unwrap_or(false) || key.is_some();
        let key = key.map(|name| Key { name, request: fingerprint(options, &request()) });
        Ok(Self { heartbeat: Teller::heartbeat(backend, options)?, resumable, key })
    }

    /// Refuses what a call that does not stream cannot do.
    ///
    /// # Errors
    /// `InvalidArgument` with the field's path.
    pub(super) fn refuse_in_unary(options: Option<&wire::RequestOptions>) -> Result<()> {
        let Some(options) = options else { return Ok(()) };
        let fields = [
            ("options.resumable", options.resumable.unwrap_or(false)),
            ("options.idempotency_key", options.idempotency_key.as_ref().is_some_and(|key| !key.is_empty())),
        ];
        match fields.iter().find(|(_, set)| *set) {
            Some((field, _)) => Err(Error::invalid(*field, "is for streams: use the streaming call")),
            None => Ok(()),
        }
    }
}

/// A hash of a request, whatever the order in which its map comes.
fn fingerprint(options: Option<&wire::RequestOptions>, rest: &str) -> [u8; 32] {
    let mut options = options.cloned().unwrap_or_default();
    let mut bias: Vec<_> = options.sampling.as_mut().map(|s| s.logit_bias.drain().collect()).unwrap_or_default();
    bias.sort_unstable_by_key(|&(id, _): &(u32, f32)| id);
    // Each attempt may have its own.
    options.request_id = None;
    let mut hash = blake3::Hasher::new();
    hash.update(&options.encode_to_vec()).update(rest.as_bytes());
    for (id, bias) in bias {
        hash.update(format!("{id}:{bias};").as_bytes());
    }
    hash.finalize().into()
}

/// Admits a request and streams what comes of it.
///
/// # Errors
/// As [`stream::open`], [`Resumables::reserve`] and [`Place::open`](super::resumable::Place::open).
pub(super) async fn respond<M: From<(u64, Told)> + Send + 'static>(
    backend: &Backend,
    resumables: &Resumables,
    caller: Caller,
    request: Request,
    paths: &'static FieldPaths,
    wishes: Wishes,
) -> Result<BoxStream<M>> {
    let teller = Teller::new(&request, wishes.heartbeat);
    if !wishes.resumable {
        let events = stream::open(backend, &caller, request, paths).await?;
        return Ok(stream::numbered(Telling::new(backend, events, teller).numbered()));
    }
    let owner = caller.owner();
    let admit = move |id: String| async move {
        let events = stream::open(backend, &caller, request, paths).await?;
        Ok(Telling::new(backend, events, Teller { stream_id: Some(id), ..teller }))
    };
    // The engine counts its own refusals.
    let place = resumables.reserve(owner, wishes.key).map_err(|error| backend.refused(error))?;
    let attachment = place.open(admit).await?;
    Ok(stream::numbered(attachment.events()))
}
