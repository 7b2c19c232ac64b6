//! `grpc.health.v1`: the server's health under the name of every service, that of a model under `models/NAME`, with a Watch
//! that tells each change.
//!
//! The server is healthy as long as one of its models is: requests for that one are answered.

use futures::{Stream, StreamExt};
use tonic::{Request, Response, Status, codegen::BoxStream};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_check_response::ServingStatus,
    health_server::{Health as HealthRpc, HealthServer},
};

use super::{Models, SERVICES, status::status, stream::onlooking};
use crate::{
    engine::Health,
    error::{Code, Error},
};

/// What stands before a model's name.
const MODEL: &str = "models/";

/// The service, over the models' own health.
pub(super) fn service(models: &Models) -> HealthServer<impl HealthRpc> {
    HealthServer::new(HealthService { models: models.clone() })
}

struct HealthService {
    models: Models,
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

/// Of a service, or of a model; none where there is no such thing.
fn health_of(models: &Models, name: &str) -> Option<Health> {
    match name.strip_prefix(MODEL) {
        Some(model) => models.health_of(model),
        None => SERVICES.contains(&name).then(|| models.health()),
    }
}

impl HealthService {
    /// The status now and at every change, each different from the one before.
    fn statuses(&self, name: String) -> impl Stream<Item = ServingStatus> + Send + 'static {
        let (models, mut last) = (self.models.clone(), None);
        let now = move |()| health_of(&models, &name).map_or(ServingStatus::ServiceUnknown, serving);
        let statuses = self.models.health_changes().map(now);
        statuses.filter(move |&status| std::future::ready(last.replace(status) != Some(status)))
    }
}

#[tonic::async_trait]
impl HealthRpc for HealthService {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let name = request.into_inner().service;
        let unknown = || status(Error::new(Code::NotFound, format!("no service is called {name:?}")));
        let health = health_of(&self.models, &name).ok_or_else(unknown)?;
        Ok(Response::new(response(serving(health))))
    }

    type WatchStream = BoxStream<HealthCheckResponse>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        // Clients take any end of a watch as a reason to watch again, elsewhere or later.
        let updates = self.statuses(request.into_inner().service).take_until(self.models.closing().leaving());
        Ok(onlooking(Box::pin(updates.map(|status| Ok(response(status))))))
    }
}
