//! `candlewick.v1.Admin`: what whoever runs the server may ask of it.

mod guard;

use std::{ops::RangeInclusive, sync::Arc, time::Duration};

use futures::{StreamExt, future::join_all, stream};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tonic::{Request, Response, Status, codegen::BoxStream};

pub(crate) use self::guard::{check_operator, reader};
use super::{Backend, Models, status::status, stream::onlooking};
use crate::{
    engine::{Health, TenantLoad, Which},
    error::{Code, Error, Result},
    proto::candlewick::v1::{
        AbortRequest, AbortResponse, DrainRequest, DrainResponse, FlushCacheRequest, FlushCacheResponse,
        GetLoadsRequest, GetLoadsResponse, Loads, TenantLoad as WireTenantLoad, WatchLoadsRequest, WatchLoadsResponse,
        abort_request::Which as Asked, admin_server::Admin,
    },
    server::throughput::Rates,
};

/// Shortest and longest time between two messages of a watch, and what it is unless set.
const WATCH_MS: RangeInclusive<u32> = 100..=3_600_000;
const WATCH_DEFAULT_MS: u32 = 1000;
/// Watches at once: each looks at all live requests.
const WATCHES: usize = 64;

pub(super) struct AdminService {
    models: Models,
    /// How long calls are still taken after health has turned.
    drain_grace: Duration,
    watches: Arc<Semaphore>,
}

impl AdminService {
    pub(super) fn new(models: Models, drain_grace: Duration) -> Self {
        Self { models, drain_grace, watches: Arc::new(Semaphore::new(WATCHES)) }
    }
}

fn checked<T>(request: Request<T>) -> Result<T, Status> {
    let (metadata, extensions, message) = request.into_parts();
    check_operator(&metadata, &extensions).map_err(status)?;
    Ok(message)
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// How busy the model is that requests get which name none, where it is in memory, and how busy all are.
fn all_loads(models: &Models) -> (Option<Loads>, Vec<Loads>) {
    let all: Vec<_> = models.ready().iter().map(loads).collect();
    let default = models.look_at(None).ok().map(|(about, _)| about.info.name.clone());
    (all.iter().find(|loads| Some(&loads.model) == default.as_ref()).cloned(), all)
}

/// How busy an engine is, in this wire's words.
fn loads(backend: &Backend) -> Loads {
    let engine = &backend.engine;
    let (loads, config) = (engine.loads(), engine.config());
    let rates = backend.throughput.at(std::time::Instant::now(), &loads);
    let (state, totals) = (loads.state, loads.totals);
    Loads {
        model: engine.info().name.clone(),
        running_requests: u32::try_from(state.num_running).unwrap_or(u32::MAX),
        waiting_requests: u32::try_from(state.num_waiting).unwrap_or(u32::MAX),
        waiting_tokens: state.num_waiting_tokens,
        max_running_requests: count(config.max_num_seqs),
        max_live_requests: count(config.max_live()),
        num_blocks: count(loads.num_blocks),
        used_blocks: count(loads.used_blocks),
        block_size: count(config.block_size),
        prompt_tokens: loads.prompt_tokens,
        generated_tokens: loads.generated_tokens,
        generated_tokens_per_second: rates.all,
        cache_hit_rate: totals.prefix_cache_hit_tokens as f64 / totals.prefix_cache_query_tokens.max(1) as f64,
        preemptions: totals.preemptions,
        serving: *engine.health().borrow() == Health::Serving,
        tenants: loads.tenants.into_iter().map(|load| tenant_load(load, &rates)).collect(),
    }
}

fn tenant_load(load: TenantLoad, rates: &Rates) -> WireTenantLoad {
    WireTenantLoad {
        generated_tokens_per_second: rates.tenants.get(&load.tenant).copied(),
        tenant: load.tenant.map(|name| name.as_ref().to_owned()),
        weight: load.weight,
        running_requests: count(load.running),
        waiting_requests: count(load.waiting),
        generated_tokens: load.generated_tokens,
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<DrainResponse>, Status> {
        let wait = Duration::from_millis(checked(request)?.wait_ms.unwrap_or(0));
        let (models, grace) = (self.models.clone(), self.drain_grace);
        tracing::info!("asked to drain: streams under way go on, new requests are refused");
        models.announce_drain();
        // A task of its own: who asked may go away, and the drain goes on.
        let began = tokio::spawn(async move {
            sleep(grace).await;
            models.begin_drain();
        });
        began.await.map_err(|error| status(Error::internal(format!("the drain: {error}"))))?;
        let drained = timeout(wait, self.models.drained()).await.is_ok();
        let live = if drained { 0 } else { self.models.num_live() };
        Ok(Response::new(DrainResponse { live_requests: count(live), drained: live == 0 }))
    }

    async fn flush_cache(&self, request: Request<FlushCacheRequest>) -> Result<Response<FlushCacheResponse>, Status> {
        checked(request)?;
        let models = self.models.ready();
        // Whatever is wrong with one of them, the others are emptied.
        let flushed = join_all(models.iter().map(|backend| backend.engine.flush_cache())).await;
        let (mut freed, mut in_use) = (0, 0);
        for flushed in flushed {
            let flushed = flushed.map_err(status)?;
            (freed, in_use) = (freed + flushed.freed, in_use + flushed.in_use);
        }
        let (freed_blocks, in_use_blocks) = (count(freed), count(in_use));
        Ok(Response::new(FlushCacheResponse { freed_blocks, in_use_blocks }))
    }

    async fn get_loads(&self, request: Request<GetLoadsRequest>) -> Result<Response<GetLoadsResponse>, Status> {
        checked(request)?;
        let (loads, models) = all_loads(&self.models);
        Ok(Response::new(GetLoadsResponse { loads, models }))
    }

    type WatchLoadsStream = BoxStream<WatchLoadsResponse>;

    async fn watch_loads(
        &self,
        request: Request<WatchLoadsRequest>,
    ) -> Result<Response<Self::WatchLoadsStream>, Status> {
        let ms = checked(request)?.interval_ms.unwrap_or(WATCH_DEFAULT_MS);
        if !WATCH_MS.contains(&ms) {
            let (least, most) = WATCH_MS.into_inner();
            return Err(status(Error::invalid("interval_ms", format!("is {ms}, must be from {least} to {most}"))));
        }
        let place = self.watches.clone().try_acquire_owned();
        let place = place.map_err(|_| {
            let why = format!("{WATCHES} watch the loads already");
            status(Error::new(Code::ResourceExhausted, why))
        })?;
        let messages = watch(self.models.clone(), Duration::from_millis(ms.into()), place);
        let messages = messages.take_until(self.models.closing().leaving());
        Ok(onlooking(Box::pin(messages)))
    }

    async fn abort(&self, request: Request<AbortRequest>) -> Result<Response<AbortResponse>, Status> {
        let which = checked(request)?.which;
        let which = match &which {
            Some(Asked::RequestId(id)) => Which::Id(id),
            Some(Asked::Tenant(tenant)) => Which::Tenant(Some(tenant.as_str()).filter(|name| !name.is_empty())),
            None => return Err(status(Error::invalid("which", "must be set: request_id or tenant"))),
        };
        let aborted = self.models.abort(which);
        Ok(Response::new(AbortResponse { aborted_requests: count(aborted) }))
    }
}

/// The loads now and at every tick. Made when they are read, so that a slow reader has nothing waiting.
fn watch(
    models: Models,
    every: Duration,
    place: OwnedSemaphorePermit,
) -> impl futures::Stream<Item = Result<WatchLoadsResponse, Status>> + Send + 'static {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    stream::unfold((models, ticks, place), |(models, mut ticks, place)| async move {
        let _at: Instant = ticks.tick().await;
        let (loads, all) = all_loads(&models);
        let message = WatchLoadsResponse { loads, models: all };
        Some((Ok(message), (models, ticks, place)))
    })
}
