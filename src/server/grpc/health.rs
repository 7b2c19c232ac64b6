//! `grpc.health.v1`: the engine's health under the name of every service, with a Watch that tells each change.

use futures::{Stream, StreamExt};
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status, codegen::BoxStream};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_check_response::ServingStatus,
    health_server::{Health as HealthRpc, HealthServer},
};

use super::{Backend, SERVICES, status::status};
use crate::{
    engine::Health,
    error::{Code, Error},
};

/// The service, over the engine's own health.
pub(super) fn service(backend: &Backend) -> HealthServer<impl HealthRpc> {
    HealthServer::new(HealthService { backend: backend.clone() })
}

struct HealthService {
    backend: Backend,
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

fn serving(health: Health) -> ServingStatus {
    match health {
        Health::Serving => ServingStatus::Serving,
        Health::Restarting | Health::Draining => ServingStatus::NotServing,
    }
}

impl HealthService {
    /// The status now and at every change, each different from the one before.
    fn statuses(&self, known: bool) -> impl Stream<Item = ServingStatus> + Send + 'static {
        let mut last = None;
        WatchStream::new(self.backend.engine.health())
            .map(move |health| if known { serving(health) } else { ServingStatus::ServiceUnknown })
            .filter(move |&status| std::future::ready(last.replace(status) != Some(status)))
    }
}

#[tonic::async_trait]
impl HealthRpc for HealthService {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let name = request.into_inner().service;
        if !SERVICES.contains(&name.as_str()) {
            return Err(status(Error::new(Code::NotFound, format!("no service is called {name:?}"))));
        }
        let health = *self.backend.engine.health().borrow();
        Ok(Response::new(response(serving(health))))
    }

    type WatchStream = BoxStream<HealthCheckResponse>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let known = SERVICES.contains(&request.into_inner().service.as_str());
        // Clients take any end of a watch as a reason to watch again, elsewhere or later.
        let updates = self.statuses(known).take_until(self.backend.closing.clone().leaving());
        Ok(Response::new(Box::pin(updates.map(|status| Ok(response(status))))))
    }
}
