//! Watches: a stream of the events of one resource, as the client's selectors see them.

use crate::error::{ApiError, ApiResult};
use crate::handlers::{Req, Selection};
use crate::negotiate::{Encoding, Form, Shape};
use crate::options::ListOptions;
use crate::registry::Served;
use crate::response::{BoxError, Response};
use crate::server::Api;
use crate::store::{Event, Object, Watch};
use crate::{protobuf, table};
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderValue};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use jiff::Timestamp;
use muster_api::clock::Clock;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long a watch lasts whose client does not say.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1800);
/// How often a quiet watch tells how far it has come.
const BOOKMARK_PERIOD: Duration = Duration::from_secs(60);
/// A last bookmark is sent this long before the watch ends.
const LAST_BOOKMARK: Duration = Duration::from_secs(2);

impl Api {
    pub(crate) async fn watch(self: &Arc<Self>, req: &mut Req, served: &Arc<Served>) -> ApiResult<Response> {
        let form = req.form(served, true, true)?;
        let options = ListOptions::parse(&req.query)?;
        let selection = Selection::parse(req, served)?;
        let include = match form.shape {
            Shape::Table(_) => table::Include::parse(req.query.get("includeObject"))?,
            _ => table::Include::Metadata,
        };
        let content_type = match form.encoding {
            Encoding::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
            Encoding::Json | Encoding::Yaml => "application/json",
        };
        let mut encoder =
            Encoder { served: served.clone(), form, include, selection, clock: self.clock.clone(), columns: true };
        let mut ready = VecDeque::new();
        let asked = options.resource_version.unwrap_or(0);
        let initial = match options.send_initial_events {
            Some(send) => send,
            None => asked == 0,
        };
        let from = if initial {
            self.fresh(asked).await?;
            let page = self.store.list(&served.storage, encoder.selection.namespace.as_deref(), None, None);
            let page = page.map_err(|_| ApiError::gone("the list is too old"))?;
            for (object, path) in page.items.iter().zip(&page.paths) {
                if encoder.selection.matches(served, path, object) {
                    ready.push_back(encoder.event("ADDED", object));
                }
            }
            if options.send_initial_events == Some(true) && options.bookmarks {
                ready.push_back(encoder.bookmark(page.revision, true));
            }
            page.revision
        } else if asked == 0 {
            self.store.revision()
        } else {
            self.fresh(asked).await?;
            asked
        };
        let now = Instant::now();
        let timeout = options.timeout.map_or(DEFAULT_TIMEOUT, Duration::from_secs);
        let end = now + timeout;
        let stream = Streaming {
            watch: self.store.watch(&served.storage, from),
            encoder,
            ready,
            end,
            bookmark: options.bookmarks.then(|| next_bookmark(now, end)).flatten(),
            done: false,
            api: self.clone(),
        };
        let frames = futures::stream::unfold(stream, |mut stream| async move {
            let bytes = stream.next().await?;
            Some((Ok::<_, BoxError>(Frame::data(bytes)), stream))
        });
        let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        Ok(response)
    }
}

fn next_bookmark(now: Instant, end: Instant) -> Option<Instant> {
    let last = end.checked_sub(LAST_BOOKMARK).filter(|last| *last > now);
    last.map(|last| last.min(now + BOOKMARK_PERIOD))
}

/// One open watch.
struct Streaming {
    watch: Watch,
    encoder: Encoder,
    ready: VecDeque<Bytes>,
    end: Instant,
    bookmark: Option<Instant>,
    done: bool,
    api: Arc<Api>,
}

impl Streaming {
    /// The next bytes to send; nothing where the watch is over.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(first) = self.ready.pop_front() {
                return Some(self.gather(first));
            }
            if self.done {
                return None;
            }
            let quiet_until = self.bookmark.unwrap_or(self.end).min(self.end);
            let outcome = tokio::select! {
                biased;
                events = self.watch.next() => Some(events),
                () = self.api.registry.unserved(&self.encoder.served), if !self.encoder.served.is_builtin() => {
                    self.done = true;
                    continue;
                }
                () = tokio::time::sleep_until(quiet_until) => None,
            };
            match outcome {
                Some(Ok(events)) => {
                    let lines = events.iter().filter_map(|event| self.encoder.translate(event));
                    self.ready.extend(lines);
                }
                Some(Err(expired)) => {
                    self.done = true;
                    let status =
                        ApiError::gone(format!("too old resource version: {} ({})", expired.asked, expired.floor));
                    self.ready.push_back(self.encoder.frame("ERROR", &status.to_status()));
                }
                None if Instant::now() >= self.end => self.done = true,
                None => {
                    // A bookmark promises all events before it, so the watch first moves to the present.
                    match self.watch.pending() {
                        Ok(events) => {
                            let lines = events.iter().filter_map(|event| self.encoder.translate(event));
                            self.ready.extend(lines);
                        }
                        Err(_) => continue,
                    }
                    let revision = self.watch.revision();
                    self.ready.push_back(self.encoder.bookmark(revision, false));
                    self.bookmark = next_bookmark(Instant::now(), self.end);
                }
            }
        }
    }

    /// Several small events travel together.
    fn gather(&mut self, first: Bytes) -> Bytes {
        const ENOUGH: usize = 32 << 10;
        if self.ready.is_empty() {
            return first;
        }
        let mut out = BytesMut::from(first);
        while out.len() < ENOUGH {
            let Some(next) = self.ready.pop_front() else { break };
            out.extend_from_slice(&next);
        }
        out.freeze()
    }
}

/// Writes events in the form that the client asked for.
struct Encoder {
    served: Arc<Served>,
    form: Form,
    include: table::Include,
    selection: Selection,
    clock: Clock,
    /// Whether the next table still has to carry its column definitions.
    columns: bool,
}

fn line(kind: &str, object: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(object.len() + 40);
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(kind.as_bytes());
    out.extend_from_slice(b"\",\"object\":");
    out.extend_from_slice(object);
    out.extend_from_slice(b"}\n");
    out.freeze()
}

/// The metadata of an encoded object, cut out of it: whoever watches metadata watches every kind.
fn partial(version: &str, object: &[u8]) -> Vec<u8> {
    #[derive(serde::Deserialize)]
    struct Cut<'a> {
        #[serde(borrow)]
        metadata: &'a serde_json::value::RawValue,
    }
    let metadata = serde_json::from_slice::<Cut<'_>>(object).map_or("{}", |cut| cut.metadata.get());
    format!("{{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"{version}\",\"metadata\":{metadata}}}").into_bytes()
}

impl Encoder {
    /// An event as the selection sees it: an object that comes to match is added, one that ceases to is deleted.
    fn translate(&mut self, event: &Event) -> Option<Bytes> {
        let matches = |object: &Object| self.selection.matches(&self.served, &event.path, object);
        let was = event.previous.as_ref().is_some_and(|previous| matches(previous));
        let is = !event.deleted && matches(&event.object);
        match (was, is) {
            (false, false) => None,
            (false, true) => Some(self.event("ADDED", &event.object)),
            (true, true) => Some(self.event("MODIFIED", &event.object)),
            (true, false) => {
                let last = event.previous.as_ref()?.at_revision(event.revision);
                Some(self.event("DELETED", &last))
            }
        }
    }

    fn event(&mut self, kind: &str, object: &Object) -> Bytes {
        match self.form.shape {
            Shape::Whole if self.form.encoding == Encoding::Json => {
                line(kind, &self.served.json(object, self.form.managers))
            }
            Shape::Partial(version, _) if self.form.encoding == Encoding::Json => {
                line(kind, &partial(version, &self.served.json(object, self.form.managers)))
            }
            _ => {
                let value = self.served.value(object);
                self.shaped(kind, value)
            }
        }
    }

    fn shaped(&mut self, kind: &str, value: Value) -> Bytes {
        let value = match self.form.shape {
            Shape::Whole => value,
            Shape::Partial(version, _) => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": version, "metadata": value["metadata"]})
            }
            Shape::Table(version) => {
                let metadata = json!({"resourceVersion": value["metadata"]["resourceVersion"]});
                let columns = std::mem::take(&mut self.columns);
                let now: Timestamp = self.clock.now();
                table::table(&self.served, version, metadata, &[value], self.include, now, columns)
            }
        };
        self.frame(kind, &value)
    }

    /// An event on its own.
    fn frame(&self, kind: &str, value: &Value) -> Bytes {
        let binary = (self.form.encoding == Encoding::Protobuf).then(|| protobuf::watch_event(kind, value)).flatten();
        binary.map_or_else(|| line(kind, value.to_string().as_bytes()), Bytes::from)
    }

    fn bookmark(&mut self, revision: u64, initial_end: bool) -> Bytes {
        let mut value = json!({
            "kind": self.served.kind, "apiVersion": self.served.api_version(),
            "metadata": {"resourceVersion": revision.to_string()},
        });
        if initial_end {
            value["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        self.shaped("BOOKMARK", value)
    }
}
