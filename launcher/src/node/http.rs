//! The part of the kubelet's HTTP API that the API server asks for: a container's log, as text, perhaps as a stream
//! that follows. In process; who may ask is the API server's business.

use super::logs::{LogOptions, LogReader, LogWatch};
use super::runtime::{ContainerId, PodRuntime};
use bytes::Bytes;
use futures::stream;
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

    /// Serves `GET /containerLogs/NAMESPACE/POD/CONTAINER`.
    pub fn http(&self) -> NodeService {
        let handle = self.clone();
        BoxCloneSyncService::new(tower::service_fn(move |request: Request<Bytes>| {
            let handle = handle.clone();
            async move { Ok(handle.answer(&request)) }
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

    fn answer(&self, request: &Request<Bytes>) -> Response<Body> {
        let path: Vec<&str> = request.uri().path().split('/').collect();
        let ["", "containerLogs", namespace, pod, container] = path[..] else {
            return refuse(StatusCode::NOT_FOUND, "no such path");
        };
        if request.method() != Method::GET {
            return refuse(StatusCode::METHOD_NOT_ALLOWED, "only GET is allowed");
        }
        let node = self.0.node.read().unwrap_or_else(PoisonError::into_inner).clone();
        let Some((runtime, clock)) = node else {
            return refuse(StatusCode::SERVICE_UNAVAILABLE, "the node is not running");
        };
        let options = match LogOptions::parse(request.uri().query().unwrap_or_default(), clock.now()) {
            Ok(options) => options,
            Err(message) => return refuse(StatusCode::BAD_REQUEST, message),
        };
        let key = (namespace.to_owned(), pod.to_owned());
        let found = self.0.pods.read().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        let Some(PodLogs { uid, states }) = found else {
            return refuse(StatusCode::NOT_FOUND, format!("pod \"{pod}\" does not exist on this node"));
        };
        let state = states.borrow().get(container).cloned();
        let Some(state) = state else {
            return refuse(
                StatusCode::NOT_FOUND,
                format!("container \"{container}\" in pod \"{pod}\" is not available"),
            );
        };
        let attempt = match which(pod, container, &state, options.previous) {
            Ok(attempt) => attempt,
            Err(message) => return refuse(StatusCode::BAD_REQUEST, message),
        };
        let id = ContainerId { pod_uid: uid, container: container.to_owned(), attempt };
        let dir = runtime.log_dir(&id);
        let watch = if options.follow { LogWatch::new(&dir).ok() } else { None };
        match LogReader::open(&dir, options.clone()) {
            Ok(reader) => follow(Follower { reader, watch, states, id, options }),
            Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, format!("failed to read the log: {error}")),
        }
    }
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

struct Follower {
    reader: LogReader,
    watch: Option<LogWatch>,
    states: watch::Receiver<LogStates>,
    id: ContainerId,
    options: LogOptions,
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
            let Some(watch) = self.watch.as_ref().filter(|_| self.options.follow && !ended) else { return Ok(None) };
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
}

fn follow(follower: Follower) -> Response<Body> {
    let stream = stream::unfold(Some(follower), |follower| async move {
        let mut follower = follower?;
        match follower.next().await {
            Ok(Some(bytes)) => Some((Ok(http_body::Frame::data(bytes)), Some(follower))),
            Ok(None) => None,
            Err(error) => Some((Err(BoxError::from(error)), None)),
        }
    });
    let mut response = Response::new(BodyExt::boxed_unsync(StreamBody::new(stream)));
    let plain = header::HeaderValue::from_static("text/plain");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

/// An error as clients of the API read it.
fn refuse(code: StatusCode, message: impl Into<String>) -> Response<Body> {
    let reason = match code {
        StatusCode::BAD_REQUEST => "BadRequest",
        StatusCode::NOT_FOUND => "NotFound",
        StatusCode::METHOD_NOT_ALLOWED => "MethodNotAllowed",
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
    let body = Full::new(Bytes::from(status.to_string())).map_err(|never: Infallible| match never {});
    let mut response = Response::new(body.boxed_unsync());
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
