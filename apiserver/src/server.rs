//! The API server as a whole: what it is made of, the in-process service, the HTTPS listener.

use crate::auth::{self, Identity, Keys};
use crate::error::ApiError;
use crate::registry::{self, Registry};
use crate::response::{self, Body, BoxError, Response};
use crate::store::{self, Store};
use bytes::Bytes;
use http_body_util::BodyExt;
use muster_api::clock::Clock;
use muster_api::random::Random;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use tokio_util::sync::CancellationToken;
use tower::Service as _;

/// The node's HTTP API, in process: `/containerLogs/{namespace}/{pod}/{container}`, and with the connection of the
/// request among its extensions `/exec/...` and `/attach/...` likewise, `/portForward/{namespace}/{pod}`.
pub type NodeService = tower::util::BoxCloneSyncService<http::Request<Bytes>, Response, BoxError>;

/// Where the store keeps its data.
pub enum Backend {
    /// In this file (and a WAL beside it).
    Sqlite(PathBuf),
    /// Nowhere: gone with the process.
    Memory,
    Custom(Box<dyn store::Backend>),
}

/// Which parts are up. `/readyz` answers 200 once all that were expected are.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<String, bool>>>);

impl Readiness {
    /// Makes `/readyz` wait for a part.
    pub fn expect(&self, part: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(part.to_owned()).or_insert(false);
    }

    pub fn set(&self, part: &str, ready: bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(part.to_owned(), ready);
    }

    /// Every part with its state.
    pub fn parts(&self) -> BTreeMap<String, bool> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What an API server is made of.
pub struct Options {
    pub backend: Backend,
    pub clock: Clock,
    pub random: Random,
    pub keys: Keys,
    /// Answers for the logs of pods and for streams to them; without it they are refused.
    pub nodes: Option<NodeService>,
    /// CustomResourceDefinitions that are created, or brought up to date, before the first request.
    pub crds: Vec<serde_json::Value>,
    pub readiness: Readiness,
    /// Whether pods are given a service account, a priority and tolerations, as a cluster with its controllers does.
    /// Without controllers no service account would be there.
    pub pod_admission: bool,
    /// The text of `/metrics` (Prometheus), besides what the server counts itself.
    pub metrics: Option<Arc<dyn Fn() -> String + Send + Sync>>,
}

impl Options {
    /// A server on a memory store with the system's clock and random source.
    pub fn memory() -> Self {
        Options {
            backend: Backend::Memory,
            clock: Clock::system(),
            random: Random::system(),
            keys: Keys::new(),
            nodes: None,
            crds: Vec::new(),
            readiness: Readiness::default(),
            pod_admission: true,
            metrics: None,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Store(#[from] store::OpenError),
    #[error(transparent)]
    Backend(#[from] store::BackendError),
    #[error("failed to install {what}: {error}")]
    Bootstrap { what: String, error: ApiError },
}

/// What every request works with.
pub(crate) struct Api {
    pub(crate) store: Store,
    pub(crate) registry: Registry,
    pub(crate) clock: Clock,
    pub(crate) random: Random,
    pub(crate) keys: Keys,
    pub(crate) nodes: Option<NodeService>,
    pub(crate) readiness: Readiness,
    pub(crate) pod_admission: bool,
    pub(crate) metrics: Option<Arc<dyn Fn() -> String + Send + Sync>>,
    /// Held by whoever brings the custom kinds up to date.
    pub(crate) settling: tokio::sync::Mutex<()>,
    /// Held while a write is counted against a quota, until it is stored.
    pub(crate) counting: tokio::sync::Mutex<()>,
}

/// A handle to the API server; clones share it.
#[derive(Clone)]
pub struct ApiServer(pub(crate) Arc<Api>);

impl ApiServer {
    /// Opens the store and installs what every cluster has.
    pub async fn open(options: Options) -> Result<ApiServer, OpenError> {
        let Options { backend, clock, random, keys, nodes, crds, readiness, pod_admission, metrics } = options;
        let backend: Box<dyn store::Backend> = match backend {
            Backend::Memory => Box::new(store::Memory),
            Backend::Sqlite(path) => Box::new(store::Sqlite::open(&path)?),
            Backend::Custom(backend) => backend,
        };
        let store = Store::open(backend, registry::index)?;
        let registry = Registry::new();
        let server = ApiServer(Arc::new(Api {
            store,
            registry,
            clock,
            random,
            keys,
            nodes,
            readiness,
            pod_admission,
            metrics,
            settling: tokio::sync::Mutex::new(()),
            counting: tokio::sync::Mutex::new(()),
        }));
        server.0.bootstrap(crds).await?;
        Ok(server)
    }

    /// The API in process, without a socket: all requests are those of `identity`. This is what `kube::Client::new`
    /// takes.
    pub fn service(&self, identity: Identity) -> Service {
        Service { api: self.0.clone(), identity, brief: false }
    }

    /// The store beneath, for tests and figures.
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// Serves HTTPS (HTTP/1.1 and HTTP/2) until `shutdown`; then lets requests end, watches at once.
    pub async fn serve(
        &self,
        listener: tokio::net::TcpListener,
        tls: Arc<rustls::ServerConfig>,
        shutdown: CancellationToken,
    ) {
        let acceptor = tokio_rustls::TlsAcceptor::from(tls);
        let tasks = tokio_util::task::TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "failed to accept a connection");
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    continue;
                }
            };
            let (api, acceptor, shutdown) = (self.0.clone(), acceptor.clone(), shutdown.clone());
            tasks.spawn(async move {
                if let Err(error) = connection(api, stream, acceptor, shutdown).await {
                    tracing::debug!(%error, "a connection ended early");
                }
            });
        }
        tasks.close();
        let _ = tokio::time::timeout(std::time::Duration::from_secs(5), tasks.wait()).await;
    }

    /// Commits what is on its way and refuses further writes.
    pub async fn close(&self) {
        let store = self.0.store.clone();
        let _ = tokio::task::spawn_blocking(move || store.close()).await;
    }
}

async fn connection(
    api: Arc<Api>,
    stream: tokio::net::TcpStream,
    acceptor: tokio_rustls::TlsAcceptor,
    shutdown: CancellationToken,
) -> Result<(), BoxError> {
    use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
    stream.set_nodelay(true)?;
    let handshake = tokio::time::timeout(std::time::Duration::from_secs(10), acceptor.accept(stream));
    let stream = handshake.await??;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let certified = certificate.and_then(|certificate| auth::x509::identity(certificate));
    let stopping = shutdown.clone();
    let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let (api, certified, stopping) = (api.clone(), certified.clone(), stopping.clone());
        async move {
            let identity = match auth::bearer(request.headers()) {
                Some(token) => api.authenticate(token),
                None => certified.ok_or_else(ApiError::unauthorized),
            };
            let response = match identity {
                Ok(identity) => api.handle(request.map(incoming), identity).await,
                Err(error) => response::error(&error, crate::negotiate::Encoding::Json),
            };
            Ok::<_, std::convert::Infallible>(response.map(|body| until(body, stopping)))
        }
    });
    let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(std::time::Duration::from_secs(30));
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(1000).keep_alive_interval(None);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        biased;
        ended = connection.as_mut() => return ended,
        () = shutdown.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    connection.await
}

fn incoming(body: hyper::body::Incoming) -> Body {
    fn boxed(error: hyper::Error) -> BoxError {
        Box::new(error)
    }
    body.map_err(boxed).boxed_unsync()
}

/// Ends a stream when the server stops: a watch would never end by itself.
fn until(body: Body, stopping: CancellationToken) -> Body {
    use futures::StreamExt;
    use http_body::Body as _;
    if body.size_hint().exact().is_some() {
        return body;
    }
    let frames = http_body_util::BodyStream::new(body).take_until(stopping.cancelled_owned());
    http_body_util::StreamBody::new(frames).boxed_unsync()
}

/// The API for one identity, as a tower service.
#[derive(Clone)]
pub struct Service {
    api: Arc<Api>,
    identity: Identity,
    brief: bool,
}

/// Marks requests whose client has no use for managed fields.
#[derive(Clone, Copy)]
pub(crate) struct Brief;

impl Service {
    /// Leaves the managed fields out of what is answered: often half of an object, which controllers never look at.
    pub fn brief(mut self) -> Self {
        self.brief = true;
        self
    }
}

impl<B> tower::Service<http::Request<B>> for Service
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response;
    type Error = std::convert::Infallible;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let (api, identity) = (self.api.clone(), self.identity.clone());
        let mut request = request.map(|body| body.map_err(Into::into).boxed_unsync());
        if self.brief {
            request.extensions_mut().insert(Brief);
        }
        Box::pin(async move { Ok(api.handle(request, identity).await) })
    }
}

impl Api {
    /// Asks the node; its errors become ours.
    pub(crate) async fn ask_node(&self, request: http::Request<Bytes>) -> Result<Response, ApiError> {
        let Some(mut nodes) = self.nodes.clone() else {
            return Err(ApiError::new(503, "ServiceUnavailable", "this server runs no node"));
        };
        nodes.call(request).await.map_err(|error| ApiError::internal(error.to_string()))
    }
}
