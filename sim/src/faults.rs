//! The way from a controller to the API server, and what can happen on it: requests are refused, delayed, or carried
//! out without an answer; watches end, begin with 410 Gone, lag and repeat themselves; and the controller dies after
//! one of its writes.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use kube::client::Body as ClientBody;
use muster_apiserver::{Body, BoxError, Service};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use tokio::sync::Notify;
use tower::Service as _;

use crate::history::Shared;
use crate::invariants::watch_order::{self, WatchOrder};
use crate::scenario::Faults;

/// The seeded source of bad luck of one world.
#[derive(Clone)]
pub struct Luck(Arc<Weather>);

struct Weather {
    faults: Faults,
    rng: Mutex<StdRng>,
    healed: AtomicBool,
}

impl Luck {
    pub fn new(seed: u64, faults: Faults) -> Luck {
        let rng = Mutex::new(StdRng::seed_from_u64(seed ^ 0x10C4));
        Luck(Arc::new(Weather { faults, rng, healed: AtomicBool::new(false) }))
    }

    /// From now on nothing goes wrong.
    pub fn heal(&self) {
        self.0.healed.store(true, Ordering::Relaxed);
    }

    fn below(&self, bound: u32) -> u32 {
        self.0.rng.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).random_range(0..bound.max(1))
    }

    /// Whether what happens `thousandths` times in a thousand happens now.
    fn strikes(&self, rate: impl Fn(&Faults) -> u32) -> bool {
        let rate = rate(&self.0.faults);
        rate > 0 && !self.0.healed.load(Ordering::Relaxed) && self.below(1000) < rate
    }

    fn delay(&self, longest: impl Fn(&Faults) -> Duration) -> Duration {
        let longest = longest(&self.0.faults).as_millis() as u32;
        if longest == 0 || self.0.healed.load(Ordering::Relaxed) {
            return Duration::ZERO;
        }
        Duration::from_millis(self.below(longest).into())
    }
}

/// One life of a controller.
pub struct Life {
    pub name: String,
    dead: AtomicBool,
    /// Writes until its death, if it is to die.
    writes_left: AtomicU32,
    pub died: Notify,
}

impl Life {
    pub fn new(name: String, dies_after: Option<u32>) -> Arc<Life> {
        let writes_left = AtomicU32::new(dies_after.unwrap_or(u32::MAX));
        Arc::new(Life { name, dead: AtomicBool::new(false), writes_left, died: Notify::new() })
    }

    pub fn kill(&self) {
        if !self.dead.swap(true, Ordering::Relaxed) {
            self.died.notify_one();
        }
    }

    fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    /// Counts a write that has been carried out; the last one kills.
    fn has_written(&self) {
        if self.writes_left.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.kill();
        }
    }
}

/// The API server as one life of a controller reaches it.
#[derive(Clone)]
pub struct Faulty {
    server: Service,
    luck: Luck,
    life: Arc<Life>,
    history: Shared,
}

impl Faulty {
    pub fn new(server: Service, luck: Luck, life: Arc<Life>, history: Shared) -> Faulty {
        Faulty { server, luck, life, history }
    }

    fn note(&self, what: &str, method: &Method, path: &str) {
        self.history.note(format_args!("{} {what} {method} {path}", self.life.name));
    }

    async fn request(mut self, request: Request<ClientBody>) -> Result<Response<Body>, BoxError> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let query = request.uri().query().unwrap_or_default().to_owned();
        let is_watch = query.contains("watch=true");
        let is_write = method != Method::GET;
        let is_event = path.ends_with("/events") || path.contains("/events/");
        tokio::time::sleep(self.luck.delay(|faults| faults.delay)).await;
        if self.life.is_dead() {
            // Nobody is there to hear an answer.
            return std::future::pending().await;
        }
        if self.luck.strikes(|faults| faults.error) {
            let (code, reason) = match self.luck.below(3) {
                0 => (500, "InternalError"),
                1 => (503, "ServiceUnavailable"),
                _ => (429, "TooManyRequests"),
            };
            self.note(reason, &method, &path);
            return Ok(refusal(code, reason));
        }
        // A creation or a deletion that conflicts has a reason of its own, which the server gives: the object is there
        // already, or is another one.
        let may_conflict = matches!(method, Method::PUT | Method::PATCH) || path.ends_with("/gangbindings");
        if may_conflict && self.luck.strikes(|faults| faults.conflict) {
            self.note("Conflict", &method, &path);
            return Ok(refusal(409, "Conflict"));
        }
        if is_watch && self.luck.strikes(|faults| faults.gone) {
            self.note("Gone", &method, &path);
            return Ok(gone());
        }
        let response = self.server.call(request).await.unwrap_or_else(|never| match never {});
        if is_write && !is_event && response.status().is_success() {
            self.life.has_written();
        }
        if self.life.is_dead() {
            self.note("dies after", &method, &path);
            return std::future::pending().await;
        }
        if is_write && self.luck.strikes(|faults| faults.lost_answer) {
            self.note("lost the answer of", &method, &path);
            return Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset).into());
        }
        tokio::time::sleep(self.luck.delay(|faults| faults.delay)).await;
        if is_watch && response.status().is_success() {
            let (luck, history) = (self.luck.clone(), self.history.clone());
            let order = WatchOrder::new(&query);
            return Ok(response.map(|body| shaky(body, luck, order, path, history)));
        }
        Ok(response)
    }
}

impl tower::Service<Request<ClientBody>> for Faulty {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<Body>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<ClientBody>) -> Self::Future {
        Box::pin(self.clone().request(request))
    }
}

fn refusal(code: u16, reason: &str) -> Response<Body> {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "a fault of the simulation", "reason": reason, "code": code,
    });
    let mut response = whole(status.to_string());
    *response.status_mut() = StatusCode::from_u16(code).expect("a valid status code");
    response
}

fn gone() -> Response<Body> {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "too old resource version", "reason": "Expired", "code": 410,
    });
    whole(format!("{}\n", json!({"type": "ERROR", "object": status})))
}

fn whole(text: String) -> Response<Body> {
    let body = Full::new(Bytes::from(text)).map_err(|never| match never {});
    let mut response = Response::new(body.boxed_unsync());
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

/// A watch's body whose events lag, come twice, or end.
fn shaky(body: Body, luck: Luck, order: WatchOrder, path: String, history: Shared) -> Body {
    struct Watch {
        body: Body,
        luck: Luck,
        order: WatchOrder,
        path: String,
        history: Shared,
        /// Whole lines that have come and are not passed on yet.
        lines: VecDeque<Bytes>,
        rest: Vec<u8>,
    }
    let watch = Watch { body, luck, order, path, history, lines: VecDeque::new(), rest: Vec::new() };
    let frames = futures::stream::unfold(watch, |mut watch| async move {
        while watch.lines.is_empty() {
            let frame = watch.body.frame().await?.ok()?;
            tokio::time::sleep(watch.luck.delay(|faults| faults.lag)).await;
            watch.rest.extend_from_slice(&frame.into_data().ok()?);
            while let Some(end) = watch.rest.iter().position(|byte| *byte == b'\n') {
                let line = Bytes::from(watch.rest.drain(..=end).collect::<Vec<u8>>());
                if let Err(message) = watch.order.observe(&line) {
                    watch.history.violate(watch_order::NAME, format!("{}: {message}", watch.path));
                }
                if watch.luck.strikes(|faults| faults.duplicate) {
                    watch.lines.push_back(line.clone());
                }
                watch.lines.push_back(line);
            }
        }
        if watch.luck.strikes(|faults| faults.drop) {
            return None;
        }
        let line = watch.lines.pop_front()?;
        Some((Ok::<_, BoxError>(Frame::data(line)), watch))
    });
    StreamBody::new(frames).boxed_unsync()
}
