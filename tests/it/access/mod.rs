//! Keys, tenants and certificates over a real socket, on an engine without arithmetic.

mod floods;
mod isolation;
mod quotas;
mod refusals;
pub(crate) mod tls;

use candlewick::{
    config::{TenantKeys, TenantLimits, key_hash},
    proto::candlewick::v1::{chat_client::ChatClient, generation_client::GenerationClient},
    server::{ServeOptions, access::Access},
};
use tonic::{
    Request, Status,
    metadata::AsciiMetadataValue,
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};

use crate::grpc::{Server, config, text};

/// Shows a key with every call.
#[derive(Clone)]
struct Key(AsciiMetadataValue);

impl Interceptor for Key {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

type Keyed = InterceptedService<Channel, Key>;

/// The key of a tenant.
pub(crate) fn key(tenant: &str) -> String {
    format!("key-of-{tenant}")
}

fn tenant(name: &str, limits: TenantLimits) -> TenantKeys {
    TenantKeys { name: name.into(), keys: vec![key_hash(&key(name))], limits }
}

/// For tenants without limits.
pub(crate) async fn server(tenants: &[&str]) -> Server {
    limited(tenants.iter().map(|name| tenant(name, TenantLimits::default())).collect(), None).await
}

/// For these tenants; the engine hangs in that step.
async fn limited(tenants: Vec<TenantKeys>, mishap: Option<(u64, candlewick::engine::fake::Mishap)>) -> Server {
    let access = Access::of(Some(tenants));
    let options = ServeOptions { access, drain_grace: std::time::Duration::ZERO, ..ServeOptions::default() };
    text::server_of(mishap, config(), options).await
}

async fn keyed(server: &Server, tenant: &str) -> Keyed {
    let value = format!("Bearer {}", key(tenant)).parse().unwrap();
    InterceptedService::new(server.channel().await, Key(value))
}

async fn generation(server: &Server, tenant: &str) -> GenerationClient<Keyed> {
    GenerationClient::new(keyed(server, tenant).await)
}

async fn chat(server: &Server, tenant: &str) -> ChatClient<Keyed> {
    ChatClient::new(keyed(server, tenant).await)
}

/// The headers of a JSON call that shows a tenant's key.
fn headers(tenant: &str) -> String {
    format!("content-type: application/json\r\nauthorization: Bearer {}\r\n", key(tenant))
}
