//! gRPC (tonic) over a Unix socket: a unary call with the observation as the bytes of a protobuf field, and the action likewise.
//!
//! What `protoc` would generate is written by hand with prost's derive and tonic's codec, so that building wants no `protoc`.
//! One thread of tokio on either side (each has one CPU), HTTP/2 with
//! tonic's settings but for windows that hold a message. Both ends sleep in epoll.

use inferd_peers_common::{Client, Failure, Gate, Model, Peer};
use std::convert::Infallible;
use std::future::{Ready, ready as done};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use tokio::net::UnixListener;
use tokio::runtime::{Builder, Runtime};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{Grpc as ServerGrpc, NamedService, UnaryService};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

/// Room for a whole image: with the default of 64 KiB a message of that size waits for window updates, some 10 ms of them.
const WINDOW_BYTES: u32 = 4 << 20;
const METHOD: &str = "/inferd.peers.Policy/Infer";

/// An observation or an action.
#[derive(Clone, PartialEq, prost::Message)]
struct Tensor {
    #[prost(bytes = "vec", tag = "1")]
    data: Vec<u8>,
}

/// The service, as the generated code would have it.
#[derive(Clone)]
struct Policy(Arc<Mutex<Model>>);

impl NamedService for Policy {
    const NAME: &'static str = "inferd.peers.Policy";
}

impl Service<http::Request<Body>> for Policy {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let policy = self.clone();
        Box::pin(async move {
            let mut grpc = ServerGrpc::new(ProstCodec::<Tensor, Tensor>::default());
            Ok(grpc.unary(policy, request).await)
        })
    }
}

impl UnaryService<Tensor> for Policy {
    type Response = Tensor;
    type Future = Ready<Result<Response<Tensor>, Status>>;

    fn call(&mut self, request: Request<Tensor>) -> Self::Future {
        let observation = request.into_inner().data;
        let mut model = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if observation.len() != model.input().len() {
            return done(Err(Status::invalid_argument("another size than the model's input")));
        }
        model.input().copy_from_slice(&observation);
        done(match model.run() {
            Ok(action) => Ok(Response::new(Tensor { data: action.to_vec() })),
            Err(e) => Err(Status::internal(e.to_string())),
        })
    }
}

fn runtime() -> Result<Runtime, Failure> {
    Ok(Builder::new_current_thread().enable_all().build()?)
}

fn serve(model: Model, gate: &Gate, ready: &dyn Fn(&str)) -> Result<(), Failure> {
    let place = std::env::current_dir()?.join("grpc.sock");
    let (gate, end) = (gate.clone(), Arc::new(tokio::sync::Notify::new()));
    let over = end.clone();
    std::thread::spawn(move || {
        gate.wait_for_end();
        over.notify_one();
    });
    runtime()?.block_on(async {
        let incoming = UnixListenerStream::new(UnixListener::bind(&place)?);
        ready(&place.display().to_string());
        let policy = Policy(Arc::new(Mutex::new(model)));
        let server = Server::builder()
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .add_service(policy)
            .serve_with_incoming_shutdown(incoming, end.notified());
        let served = server.await;
        std::fs::remove_file(&place)?;
        Ok(served?)
    })
}

struct Asker {
    runtime: Runtime,
    grpc: tonic::client::Grpc<Channel>,
}

impl Client for Asker {
    fn call(&mut self, observation: &[u8], action: &mut [u8]) -> Result<(), Failure> {
        let Asker { runtime, grpc } = self;
        let reply = runtime.block_on(async {
            // The generated client does these two for every call.
            grpc.ready().await.map_err(|e| Status::unknown(e.to_string()))?;
            let request = Request::new(Tensor { data: observation.to_vec() });
            let path = http::uri::PathAndQuery::from_static(METHOD);
            grpc.unary(request, path, ProstCodec::<Tensor, Tensor>::default()).await
        })?;
        let data = reply.into_inner().data;
        if data.len() != action.len() {
            return Err(format!("a reply of {} bytes, not {}", data.len(), action.len()).into());
        }
        action.copy_from_slice(&data);
        Ok(())
    }
}

fn connect(address: &str, _request: usize, _reply: usize) -> Result<Box<dyn Client>, Failure> {
    let runtime = runtime()?;
    let endpoint = Endpoint::from_shared(format!("unix://{address}"))?
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES);
    let channel = runtime.block_on(endpoint.connect())?;
    Ok(Box::new(Asker { runtime, grpc: tonic::client::Grpc::new(channel) }))
}

fn main() -> std::process::ExitCode {
    inferd_peers_common::run(&[Peer { name: "grpc", serve, connect }])
}
