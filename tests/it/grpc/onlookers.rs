//! Several models, as those see them who look at them and ask nothing of them: routers, load balancers, whoever runs the server.

use std::{sync::Arc, time::Duration};

use candlewick::{
    engine::{
        Engine, ModelInfo, ModelText,
        fake::{FakeOptions, Gate},
        load::Started,
    },
    proto::{
        candlewick::v1::{
            FlushCacheRequest, GetLoadsRequest, LoadRequest, ModelState, WatchRequest, admin_client::AdminClient,
            models_client::ModelsClient,
        },
        inference::{ModelReadyRequest, grpc_inference_service_client::GrpcInferenceServiceClient},
        smg::grpc::common::{FlushCacheRequest as FlushCache, SubscribeKvEventsRequest},
        vllm::grpc::engine::{
            GetLoadsRequest as GetLoads, GetModelInfoRequest, GetServerInfoRequest,
            vllm_engine_client::VllmEngineClient,
        },
    },
    telemetry::Telemetry,
};
use tonic::{Code, transport::Channel};

use super::{
    Server, config, fakes, info,
    models::{has, listed, load_request, loaded, models, options, server_with, watched},
    read, request, until,
};
use crate::{engine::fails_once, openai::http::post};

/// A server whose default model is idle, beside one that cannot be.
async fn idle_by_default() -> (Server, ModelsClient<Channel>) {
    let (telemetry, well) = (Arc::new(Telemetry::new("other")), fakes(&config(), |_| FakeOptions::default()));
    let other = ModelInfo { name: "other".into(), ..info() };
    let other = Engine::start(other, ModelText::default(), config(), telemetry, well).await.unwrap();
    let mut options = options(3);
    options.models.others = vec![Started::from(other)];
    options.models.idle_timeout = Some(Duration::from_millis(200));
    let server = server_with(options).await;
    let mut models = models(&server).await;
    let replace = LoadRequest { replace: Some(true), ..load_request("fake", "llama") };
    loaded(&mut models, replace).await.unwrap();
    let mut lists = models.watch(WatchRequest {}).await.unwrap().into_inner();
    // Once nothing leaves any more.
    watched(&mut lists, |list| list.len() == 2 && has("fake", ModelState::Idle)(list)).await;
    (server, models)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_only_looks_at_an_idle_model_does_not_bring_it_back() {
    let (server, mut models) = idle_by_default().await;
    let mut router = VllmEngineClient::new(server.channel().await);
    let model = router.get_model_info(GetModelInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((model.served_model_name.as_str(), model.vocab_size), ("fake", 320));
    let info = router.get_server_info(GetServerInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.active_requests, info.is_paused, info.max_num_seqs), (0, false, 8));
    let loads = router.get_loads(GetLoads::default()).await.unwrap().into_inner().loads;
    assert_eq!((loads.len(), loads[0].num_total_reqs, loads[0].max_running_requests), (1, 0, 8));
    assert!(router.flush_cache(FlushCache::default()).await.unwrap().into_inner().success);
    let refused = router.subscribe_kv_events(SubscribeKvEventsRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    let shown = post(server.address, "/api/show", r#"{"model": "fake"}"#).await;
    assert_eq!((shown.status, &shown.json().await["details"]["family"]), (200, &"llama".into()));

    let mut admin = AdminClient::new(server.channel().await);
    let loads = admin.get_loads(GetLoadsRequest {}).await.unwrap().into_inner();
    assert!(loads.loads.is_none(), "it is not in memory: {loads:?}");
    assert_eq!(loads.models.iter().map(|loads| loads.model.as_str()).collect::<Vec<_>>(), ["other"]);
    let states = [("fake".to_owned(), ModelState::Idle), ("other".to_owned(), ModelState::Ready)];
    assert_eq!(listed(&mut models).await, states);
}

/// A server whose first model is between two lives until the gate is opened, beside one that answers.
async fn failed_beside_another(gate: &Arc<Gate>) -> Server {
    let server = Server::with(info(), ModelText::default(), config(), fails_once(gate), options(2)).await;
    loaded(&mut models(&server).await, load_request("llama", "llama")).await.unwrap();
    let stream = server.generation().await.generate_stream(request(&[1, 2, 3], 5)).await.unwrap().into_inner();
    assert_eq!(read(stream).await.error.unwrap().code(), Code::Internal);
    until("the next life is being made", || gate.reached()).await;
    server
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_is_ready_as_it_is_itself_and_not_as_others_are() {
    let gate = Arc::new(Gate::default());
    let server = failed_beside_another(&gate).await;
    let mut triton = GrpcInferenceServiceClient::new(server.channel().await);
    for (name, is_ready) in [("fake", false), ("llama", true), ("none", false)] {
        let asked = ModelReadyRequest { name: name.into(), version: String::new() };
        assert_eq!(triton.model_ready(asked).await.unwrap().into_inner().ready, is_ready, "{name}");
    }
    gate.open();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_caches_of_others_are_emptied_where_one_cannot_be() {
    let gate = Arc::new(Gate::default());
    let server = failed_beside_another(&gate).await;
    let cached = async || {
        let mut request = request(&(0..40).collect::<Vec<_>>(), 2);
        request.options.as_mut().unwrap().model = Some("llama".into());
        let stream = server.generation().await.generate_stream(request).await.unwrap().into_inner();
        read(stream).await.finished.unwrap().usage.unwrap().cached_tokens
    };
    assert_eq!((cached().await, cached().await), (0, 32));
    let refused = AdminClient::new(server.channel().await).flush_cache(FlushCacheRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert_eq!(cached().await, 0);
    gate.open();
}
