//! The part of the kubelet's HTTP API that the API server asks for: a container's log, as text, perhaps as a stream
//! that follows; and what takes a stream to a container (`streams`), for which the request carries its connection along.
//! In process; who may ask is the API server's business.

use super::logs::{LogOptions, LogReader, LogWatch};
use super::runtime::{ContainerId, PodRuntime};
use super::streams::{self, Refusal, Target};
use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use muster_api::clock::Clock;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, PoisonError, RwLock};
use tokio::sync::watch;
use tower::util::BoxCloneSyncService;

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Body = UnsyncBoxBody<Bytes, BoxError>;
pub type NodeService = BoxCloneSyncService<Request<Bytes>, Response<Body>, BoxError>;

/// What a reader of logs must know of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LogState {
    /// Not started (again); with the reason that its status gives.
    Waiting {
        reason: String,
        attempt: u32,
    },
    Running {
        attempt: u32,
    },
    Ended {
        attempt: u32,
    },
}

pub(crate) type LogStates = BTreeMap<String, LogState>;

/// A pod of this node.
#[derive(Clone)]
pub(crate) struct PodLogs {
    pub(crate) uid: String,
    pub(crate) states: watch::Receiver<LogStates>,
}

#[derive(Default)]
struct Inner {
    node: RwLock<Option<(Arc<dyn PodRuntime>, Clock)>>,
    pods: RwLock<BTreeMap<(String, String), PodLogs>>,
}

/// The node as the API server reaches it; made before the node runs.
#[derive(Clone, Default)]
pub struct NodeHandle(Arc<Inner>);

impl NodeHandle {
    pub fn new() -> Self {
        Self::default()
    }

    /// Serves `/containerLogs/NAMESPACE/POD/CONTAINER`, and so `/exec`, `/attach`; `/portForward/NAMESPACE/POD`.
    pub fn http(&self) -> NodeService {
        let handle = self.clone();
        BoxCloneSyncService::new(tower::service_fn(move |request: Request<Bytes>| {
            let handle = handle.clone();
            async move { Ok(handle.answer(request)) }
        }))
    }

    pub(crate) fn attach(&self, runtime: Arc<dyn PodRuntime>, clock: Clock) {
        *self.0.node.write().unwrap_or_else(PoisonError::into_inner) = Some((runtime, clock));
    }

    pub(crate) fn insert(&self, key: (String, String), logs: PodLogs) {
        self.0.pods.write().unwrap_or_else(PoisonError::into_inner).insert(key, logs);
    }

    /// Forgets a pod, unless another of its name has come meanwhile.
    pub(crate) fn remove(&self, key: &(String, String), uid: &str) {
        let mut pods = self.0.pods.write().unwrap_or_else(PoisonError::into_inner);
        if pods.get(key).is_some_and(|pod| pod.uid == uid) {
            pods.remove(key);
        }
    }

    fn answer(&self, request: Request<Bytes>) -> Response<Body> {
        let uri = request.uri().clone();
        let path: Vec<&str> = uri.path().split('/').collect();
        let answer = match path[..] {
            ["", "containerLogs", namespace, pod, container] if request.method() == Method::GET => {
                self.log(&request, namespace, pod, container)
            }
            ["", what @ ("exec" | "attach"), namespace, pod, container] => self
                .remote_command(request, what == "attach", namespace, pod, container)
                .map(|it| it.map(|()| full(""))),
            ["", "portForward", namespace, pod] => {
                self.port_forward(request, namespace, pod).map(|it| it.map(|()| full("")))
            }
            _ => Err((StatusCode::NOT_FOUND, "no such path".to_owned())),
        };
        answer.unwrap_or_else(|(code, message)| refuse(code, message))
    }

    fn runtime(&self) -> Result<(Arc<dyn PodRuntime>, Clock), Refusal> {
        let node = self.0.node.read().unwrap_or_else(PoisonError::into_inner).clone();
        node.ok_or_else(|| (StatusCode::SERVICE_UNAVAILABLE, "the node is not running".to_owned()))
    }

    fn pod(&self, namespace: &str, pod: &str) -> Result<PodLogs, Refusal> {
        let key = (namespace.to_owned(), pod.to_owned());
        let found = self.0.pods.read().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        found.ok_or_else(|| (StatusCode::NOT_FOUND, format!("pod \"{pod}\" does not exist on this node")))
    }

    fn log(
        &self,
        request: &Request<Bytes>,
        namespace: &str,
        pod: &str,
        container: &str,
    ) -> Result<Response<Body>, Refusal> {
        let (runtime, clock) = self.runtime()?;
        let bad = |message| (StatusCode::BAD_REQUEST, message);
        let options = LogOptions::parse(request.uri().query().unwrap_or_default(), clock.now()).map_err(bad)?;
        let PodLogs { uid, states } = self.pod(namespace, pod)?;
        let state = states.borrow().get(container).cloned();
        let state = state.ok_or_else(|| {
            (StatusCode::NOT_FOUND, format!("container \"{container}\" in pod \"{pod}\" is not available"))
        })?;
        let attempt = which(pod, container, &state, options.previous).map_err(bad)?;
        let id = ContainerId { pod_uid: uid, container: container.to_owned(), attempt };
        let dir = runtime.log_dir(&id);
        let watch = if options.follow { LogWatch::new(&dir).ok() } else { None };
        let reader = LogReader::open(&dir, options)
            .map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, format!("failed to read the log: {error}")))?;
        Ok(follow(Follower { reader, watch, states, id }))
    }

    fn remote_command(
        &self,
        mut request: Request<Bytes>,
        attach: bool,
        namespace: &str,
        pod: &str,
        container: &str,
    ) -> Result<Response<()>, Refusal> {
        let (runtime, _) = self.runtime()?;
        let PodLogs { uid, states } = self.pod(namespace, pod)?;
        let state = states.borrow().get(container).cloned();
        let attempt = match state {
            Some(LogState::Running { attempt }) => attempt,
            Some(state) => return Err((StatusCode::BAD_REQUEST, not_running(pod, container, &state))),
            None => return Err((StatusCode::NOT_FOUND, format!("container not found (\"{container}\")"))),
        };
        let id = ContainerId { pod_uid: uid, container: container.to_owned(), attempt };
        streams::remote_command(&mut request, attach, Target { runtime, id, states })
    }

    fn port_forward(&self, mut request: Request<Bytes>, namespace: &str, pod: &str) -> Result<Response<()>, Refusal> {
        let PodLogs { states, .. } = self.pod(namespace, pod)?;
        streams::port_forward(&mut request, pod.to_owned(), states)
    }
}

fn not_running(pod: &str, container: &str, state: &LogState) -> String {
    let why = match state {
        LogState::Waiting { reason, .. } => format!("is waiting to start: {reason}"),
        LogState::Running { .. } => "is running".to_owned(),
        LogState::Ended { .. } => "has ended".to_owned(),
    };
    format!("container \"{container}\" in pod \"{pod}\" {why}")
}

/// The start whose log is asked for, or why there is none, in the kubelet's words.
fn which(pod: &str, container: &str, state: &LogState, previous: bool) -> Result<u32, String> {
    let (current, attempt) = match state {
        LogState::Running { attempt } | LogState::Ended { attempt } => (true, *attempt),
        LogState::Waiting { attempt, .. } => (false, *attempt),
    };
    if previous {
        let before = match state {
            // In back-off the latest start is the one that ended.
            LogState::Waiting { .. } if attempt > 0 => Some(attempt - 1),
            _ => attempt.checked_sub(1),
        };
        return before
            .ok_or_else(|| format!("previous terminated container \"{container}\" in pod \"{pod}\" not found"));
    }
    if current {
        return Ok(attempt);
    }
    if attempt > 0 {
        return Ok(attempt - 1);
    }
    let LogState::Waiting { reason, .. } = state else { return Ok(attempt) };
    Err(match reason.as_str() {
        "ErrImagePull" | "ImagePullBackOff" | "ErrImageNeverPull" => {
            format!("container \"{container}\" in pod \"{pod}\" is waiting to start: trying and failing to pull image")
        }
        reason => format!("container \"{container}\" in pod \"{pod}\" is waiting to start: {reason}"),
    })
}

/// A log as a stream; with a watch it follows.
pub(super) struct Follower {
    pub(super) reader: LogReader,
    pub(super) watch: Option<LogWatch>,
    pub(super) states: watch::Receiver<LogStates>,
    pub(super) id: ContainerId,
}

impl Follower {
    /// What comes next; `None` at the end, which a follower reaches when the container has ended.
    async fn next(&mut self) -> std::io::Result<Option<Bytes>> {
        loop {
            // Looked at before reading: what is written before the end is read after it.
            let ended = !matches!(
                self.states.borrow_and_update().get(&self.id.container),
                Some(LogState::Running { attempt }) if *attempt == self.id.attempt
            );
            if let Some(bytes) = self.reader.next()? {
                return Ok(Some(bytes));
            }
            let Some(watch) = self.watch.as_ref().filter(|_| !ended) else { return Ok(None) };
            if self.reader.exhausted() {
                return Ok(None);
            }
            tokio::select! {
                biased;
                changed = watch.changed() => changed?,
                changed = self.states.changed() => if changed.is_err() {
                    // The pod is gone.
                    return Ok(None);
                },
            }
        }
    }

    pub(super) fn into_stream(self) -> impl Stream<Item = std::io::Result<Bytes>> + Send {
        stream::unfold(Some(self), |follower| async move {
            let mut follower = follower?;
            match follower.next().await {
                Ok(Some(bytes)) => Some((Ok(bytes), Some(follower))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
    }
}

fn follow(follower: Follower) -> Response<Body> {
    let stream = follower.into_stream().map(|bytes| bytes.map(http_body::Frame::data).map_err(BoxError::from));
    let mut response = Response::new(BodyExt::boxed_unsync(StreamBody::new(stream)));
    let plain = header::HeaderValue::from_static("text/plain");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// An error as clients of the API read it.
fn refuse(code: StatusCode, message: impl Into<String>) -> Response<Body> {
    let reason = match code {
        StatusCode::BAD_REQUEST => "BadRequest",
        StatusCode::NOT_FOUND => "NotFound",
        StatusCode::SERVICE_UNAVAILABLE => "ServiceUnavailable",
        _ => "InternalError",
    };
    let status = serde_json::json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message.into(),
        "reason": reason,
        "code": code.as_u16(),
    });
    let mut response = Response::new(full(status.to_string()));
    *response.status_mut() = code;
    let json = header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_right_start_is_read_or_the_reason_said() {
        let waiting = |reason: &str, attempt| LogState::Waiting { reason: reason.to_owned(), attempt };
        let refused = |what: &str| Err(format!("container \"c\" in pod \"p\" is waiting to start: {what}"));
        for (state, previous, want) in [
            (LogState::Running { attempt: 2 }, false, Ok(2)),
            (LogState::Running { attempt: 2 }, true, Ok(1)),
            (LogState::Ended { attempt: 0 }, false, Ok(0)),
            (waiting("CrashLoopBackOff", 3), false, Ok(2)),
            (waiting("CrashLoopBackOff", 3), true, Ok(2)),
            (waiting("ContainerCreating", 0), false, refused("ContainerCreating")),
            (waiting("ErrImagePull", 0), false, refused("trying and failing to pull image")),
            (
                LogState::Running { attempt: 0 },
                true,
                Err("previous terminated container \"c\" in pod \"p\" not found".to_owned()),
            ),
        ] {
            assert_eq!(which("p", "c", &state, previous), want, "{state:?} {previous}");
        }
    }
}
