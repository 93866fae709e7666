//! Following a job to its end: the logs of all its ranks as they are written, what it is doing, how it ended.

use super::{container_status, has_condition, main_container, name, rank_order, selector, short_name, state};
use crate::client::{Connection, Kind, with_query};
use crate::output::{Lines, Prefix, age};
use anyhow::{Result, bail};
use futures::{AsyncBufReadExt, Stream, StreamExt};
use kube::Api;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::watcher::{self, Event, watcher};
use serde_json::Value;
use std::collections::{BTreeMap, HashSet};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// How long logs may go on after the job has ended: pods that are kept running never end theirs.
const AFTER_THE_END: Duration = Duration::from_secs(3);
/// The same after a deletion: as long as the usual grace period of pods, and a little.
const AFTER_DELETION: Duration = Duration::from_secs(35);
/// Until a server that does not answer is asked again.
const RETRY: Duration = Duration::from_millis(200);

/// Which lines of the logs are wanted.
#[derive(Clone, Debug, Default)]
pub(crate) struct LogOptions {
    pub(crate) container: Option<String>,
    pub(crate) previous: bool,
    pub(crate) tail: Option<i64>,
    pub(crate) since: Option<Duration>,
    pub(crate) timestamps: bool,
}

impl LogOptions {
    /// The path of a pod's log.
    pub(crate) fn path(&self, namespace: &str, pod: &Value, follow: bool) -> String {
        let container = self.container.as_deref().unwrap_or(main_container(pod));
        let (tail, since) = (self.tail.map(|n| n.to_string()), self.since.map(|d| d.as_secs().max(1).to_string()));
        let yes = |on: bool| on.then_some("true");
        with_query(
            &format!("/api/v1/namespaces/{namespace}/pods/{}/log", name(pod)),
            &[
                ("container", Some(container)),
                ("follow", yes(follow)),
                ("previous", yes(self.previous)),
                ("tailLines", tail.as_deref()),
                ("sinceSeconds", since.as_deref()),
                ("timestamps", yes(self.timestamps)),
            ],
        )
    }
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Outcome {
    Succeeded,
    Failed {
        message: String,
        /// Of the process that failed first.
        exit_code: Option<u8>,
    },
    Deleted,
}

/// One job that is followed.
pub(crate) struct Follow<'a> {
    pub(crate) connection: &'a Connection,
    pub(crate) kind: &'a Kind,
    pub(crate) namespace: &'a str,
    pub(crate) job: &'a str,
    pub(crate) options: LogOptions,
    pub(crate) lines: &'a Lines,
    /// Say what the job is doing, not only what it writes.
    pub(crate) progress: bool,
}

/// What has been seen of the job.
#[derive(Default)]
struct Seen {
    job: Value,
    /// By name; a pod that has gone stays as it was last seen, for its exit code.
    pods: BTreeMap<String, Value>,
    /// The pods that were there at the start are known.
    listed: bool,
    /// Logs that have been opened: pod uid and number of the container's restarts.
    opened: HashSet<(String, u64)>,
    said: String,
    /// What kept which pods from starting.
    obstacles: HashSet<String>,
}

impl Seen {
    /// A quick master ends its job while other ranks are still starting: they have something to say, too.
    fn more_to_come(&self) -> bool {
        self.pods.values().any(|pod| {
            let ended = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
            !ended && !pod["spec"]["nodeName"].is_null() && pod["metadata"]["deletionTimestamp"].is_null()
        })
    }
}

impl Follow<'_> {
    /// Until the job has ended and what its pods wrote is shown.
    pub(crate) async fn to_the_end(&self) -> Result<Outcome> {
        let gvk = GroupVersionKind::gvk(&self.kind.group, &self.kind.version, &self.kind.kind);
        let jobs = self.api(&ApiResource::from_gvk_with_plural(&gvk, &self.kind.plural));
        let pods = self.api(&ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("", "v1", "Pod"), "pods"));
        let one = watcher::Config::default().fields(&format!("metadata.name={}", self.job));
        let mut job_events = std::pin::pin!(paced(watcher(jobs, one)));
        let all = watcher::Config::default().labels(&selector(self.job));
        let mut pod_events = std::pin::pin!(paced(watcher(pods, all)));

        let mut seen = Seen::default();
        let mut logs = JoinSet::new();
        let mut outcome: Option<Outcome> = None;
        let started = Instant::now();
        let mut deadline: Option<Instant> = None;
        let mut tick = tokio::time::interval(Duration::from_millis(500));
        loop {
            if let Some(end) = deadline
                && (seen.listed && logs.is_empty() && !seen.more_to_come() || Instant::now() >= end)
                && let Some(outcome) = outcome.take()
            {
                self.lines.clear_status();
                return Ok(outcome);
            }
            tokio::select! {
                biased;
                Some(event) = pod_events.next() => {
                    seen.listed |= matches!(event, Ok(Event::InitDone));
                    if let Some(pod) = self.current(event)? {
                        self.open_log(&pod, &mut seen, &mut logs);
                        self.say_obstacle(&pod, &mut seen, &mut logs);
                        seen.pods.insert(name(&pod).to_owned(), pod);
                        self.say_pending(&mut seen);
                    }
                }
                Some(event) = job_events.next(), if outcome.is_none() => {
                    outcome = self.job_event(event, &mut seen)?;
                    deadline = outcome.as_ref().map(|outcome| {
                        Instant::now() + if *outcome == Outcome::Deleted { AFTER_DELETION } else { AFTER_THE_END }
                    });
                }
                Some(_) = logs.join_next(), if !logs.is_empty() => {}
                _ = tick.tick() => {
                    if self.progress && self.lines.is_live() {
                        self.lines.status(&status_line(self.job, &seen, started.elapsed()));
                    }
                }
            }
        }
    }

    fn api(&self, resource: &ApiResource) -> Api<DynamicObject> {
        Api::namespaced_with(self.connection.client.clone(), self.namespace, resource)
    }

    /// The object of an event that tells what is; None for what has gone and for the marks of a list.
    fn current(&self, event: Result<Event<DynamicObject>, watcher::Error>) -> Result<Option<Value>> {
        match event {
            Ok(Event::Apply(object) | Event::InitApply(object)) => Ok(Some(serde_json::to_value(object)?)),
            Ok(_) => Ok(None),
            Err(error) => self.tolerate(error).map(|()| None),
        }
    }

    /// A server that restarts comes back; one that refuses does not.
    fn tolerate(&self, error: watcher::Error) -> Result<()> {
        match error {
            watcher::Error::InitialListFailed(kube::Error::Api(status)) if status.code == 401 || status.code == 403 => {
                Err(self.connection.explain(kube::Error::Api(status)))
            }
            _ => Ok(()),
        }
    }

    fn job_event(
        &self,
        event: Result<Event<DynamicObject>, watcher::Error>,
        seen: &mut Seen,
    ) -> Result<Option<Outcome>> {
        match event {
            Ok(Event::Delete(_)) => return Ok(Some(Outcome::Deleted)),
            // A list without the job: it went while nobody watched, or was never there.
            Ok(Event::InitDone) if seen.job.is_null() => bail!("there is no {} {:?}", self.kind.singular, self.job),
            event => {
                let Some(job) = self.current(event)? else { return Ok(None) };
                seen.job = job;
            }
        }
        if let Some(condition) = state(&seen.job)
            && let message = condition["message"].as_str().unwrap_or_default()
            && seen.said != message
        {
            self.say(condition["type"].as_str().unwrap_or_default(), message);
            seen.said = message.to_owned();
        }
        if has_condition(&seen.job, "Succeeded") {
            return Ok(Some(Outcome::Succeeded));
        }
        if has_condition(&seen.job, "Failed") {
            let message = state(&seen.job).and_then(|c| c["message"].as_str()).unwrap_or_default().to_owned();
            return Ok(Some(Outcome::Failed { message, exit_code: exit_code(&seen.pods) }));
        }
        Ok(None)
    }

    fn say(&self, what: &str, message: &str) {
        if self.progress {
            self.lines.say(&format!("{}: {what}: {message}", self.job));
        }
    }

    /// Says why pods are not placed, once for each reason.
    fn say_pending(&self, seen: &mut Seen) {
        let unplaced = seen.pods.values().filter(|pod| pod["spec"]["nodeName"].is_null()).find_map(|pod| {
            let conditions = pod["status"]["conditions"].as_array()?;
            conditions.iter().find(|c| c["type"] == "PodScheduled" && c["status"] == "False")?["message"].as_str()
        });
        if let Some(message) = unplaced.filter(|m| *m != seen.said) {
            self.say("Pending", message);
            seen.said = message.to_owned();
        }
    }

    /// Says why a container does not start, once for each reason. An init container that failed tells it in its log.
    fn say_obstacle(&self, pod: &Value, seen: &mut Seen, logs: &mut JoinSet<()>) {
        let containers = |list: &str| pod["status"][list].as_array().into_iter().flatten();
        for status in containers("initContainerStatuses").chain(containers("containerStatuses")) {
            let Some((reason, message)) = obstacle(status) else { continue };
            let text = format!("{}: {reason}: {message}", short_name(pod));
            if seen.obstacles.insert(text.clone()) {
                self.say("Waiting", &text);
            }
        }
        for status in containers("initContainerStatuses") {
            let (container, ended) = (status["name"].as_str().unwrap_or_default(), &status["state"]["terminated"]);
            let failed = ended["reason"] == "Error" && self.options.container.is_none();
            let key = format!("{}/{container}/{}", pod["metadata"]["uid"], status["restartCount"]);
            if failed && seen.obstacles.insert(key) {
                let text = format!(
                    "{}: init container {container} failed with exit code {}",
                    short_name(pod),
                    ended["exitCode"]
                );
                self.say("Waiting", &text);
                let options = LogOptions { container: Some(container.to_owned()), ..self.options.clone() };
                let path = options.path(self.namespace, pod, true);
                logs.spawn(copy(self.connection.clone(), path, self.prefix(pod), self.lines.clone()));
            }
        }
    }

    fn prefix(&self, pod: &Value) -> Prefix {
        let (_, role, index, _) = rank_order(pod);
        let colour = usize::try_from(index).unwrap_or(0) + usize::from(role == "worker");
        self.lines.prefix(&short_name(pod), 9, colour)
    }

    /// Opens the log of a container that has started, once for each of its starts.
    fn open_log(&self, pod: &Value, seen: &mut Seen, logs: &mut JoinSet<()>) {
        let container = self.options.container.as_deref().unwrap_or(main_container(pod));
        let Some(status) = container_status(pod, container) else { return };
        let has = |pointer: &str| status.pointer(pointer).is_some_and(|v| !v.is_null());
        if !has("/state/running") && !has("/state/terminated") && !has("/lastState/terminated") {
            return;
        }
        let uid = pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        if !seen.opened.insert((uid, status["restartCount"].as_u64().unwrap_or(0))) {
            return;
        }
        let path = self.options.path(self.namespace, pod, true);
        logs.spawn(copy(self.connection.clone(), path, self.prefix(pod), self.lines.clone()));
    }
}

/// A watcher by itself asks again at once, and without end.
fn paced<T, E>(events: impl Stream<Item = Result<T, E>>) -> impl Stream<Item = Result<T, E>> {
    events.then(async |event| {
        if event.is_err() {
            tokio::time::sleep(RETRY).await;
        }
        event
    })
}

/// Why a container has not started, where something is in its way.
fn obstacle(status: &Value) -> Option<(&str, &str)> {
    let text = |pointer: &str| status.pointer(pointer).and_then(Value::as_str);
    match (text("/state/waiting/reason"), text("/state/terminated/reason")) {
        // The way of every container, and the pause after what was said before.
        (Some("ContainerCreating" | "PodInitializing"), _) => None,
        (Some(reason), _) if reason.ends_with("BackOff") => None,
        (Some(reason), _) => Some((reason, text("/state/waiting/message")?)),
        (_, Some(reason @ "StartError")) => Some((reason, text("/state/terminated/message")?)),
        _ => None,
    }
}

/// Shows a pod's log until it ends.
async fn copy(connection: Connection, path: String, prefix: Prefix, lines: Lines) {
    if let Err(error) = show_log(&connection, &path, &prefix, &lines).await {
        lines.log(&prefix, &format!("(no log: {error:#})"));
    }
}

/// Shows a log, each line behind its prefix, until it ends.
pub(crate) async fn show_log(connection: &Connection, path: &str, prefix: &Prefix, lines: &Lines) -> Result<()> {
    let mut log = std::pin::pin!(connection.stream(path, "*/*").await.map_err(|e| connection.explain(e))?);
    let mut line = Vec::new();
    while log.read_until(b'\n', &mut line).await? > 0 {
        lines.log(prefix, String::from_utf8_lossy(&line).trim_end_matches('\n'));
        line.clear();
    }
    Ok(())
}

/// The code of the process that failed first.
fn exit_code(pods: &BTreeMap<String, Value>) -> Option<u8> {
    let failures = pods.values().filter_map(|pod| {
        let status = container_status(pod, main_container(pod))?;
        let ended = ["/state/terminated", "/lastState/terminated"]
            .iter()
            .find_map(|p| status.pointer(p).filter(|v| !v.is_null()))?;
        let code = ended["exitCode"].as_i64().filter(|code| *code != 0)?;
        Some((ended["finishedAt"].as_str().unwrap_or_default().to_owned(), rank_order(pod), code))
    });
    failures.min().map(|(_, _, code)| u8::try_from(code).unwrap_or(1))
}

fn status_line(job: &str, seen: &Seen, elapsed: Duration) -> String {
    let doing = state(&seen.job).and_then(|c| c["type"].as_str()).unwrap_or("Submitted");
    let phase = |pod: &&Value, phase: &str| pod["status"]["phase"] == phase;
    let running = seen.pods.values().filter(|pod| phase(pod, "Running")).count();
    let elapsed = age(i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX));
    format!("{job}  {doing}  {running}/{} running  {elapsed}", seen.pods.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_first_failure_gives_the_exit_code() {
        let pod = |name: &str, code: i64, at: &str| {
            let status = json!({"name": "pytorch", "state": {"terminated": {"exitCode": code, "finishedAt": at}}});
            let pod = json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "side"}, {"name": "pytorch"}]},
                             "status": {"containerStatuses": [status]}});
            (name.to_owned(), pod)
        };
        let pods = BTreeMap::from([pod("a", 0, "1"), pod("b", 143, "3"), pod("c", 3, "2")]);
        assert_eq!(exit_code(&pods), Some(3));
        assert_eq!(exit_code(&BTreeMap::from([pod("a", 0, "1")])), None);
    }

    #[test]
    fn what_keeps_a_container_from_starting_is_told_from_its_usual_way() {
        let waiting = |reason: &str| json!({"state": {"waiting": {"reason": reason, "message": "why"}}});
        assert_eq!(obstacle(&waiting("ErrImagePull")), Some(("ErrImagePull", "why")));
        for usual in ["ContainerCreating", "PodInitializing", "CrashLoopBackOff", "ImagePullBackOff"] {
            assert_eq!(obstacle(&waiting(usual)), None, "{usual}");
        }
        let ended = |reason: &str| json!({"state": {"terminated": {"reason": reason, "message": "why"}}});
        assert_eq!(obstacle(&ended("StartError")), Some(("StartError", "why")));
        assert_eq!(obstacle(&ended("Error")), None, "it has run, and its log says what it has to say");
        assert_eq!(obstacle(&json!({"state": {"running": {}}})), None);
    }

    #[test]
    fn options_of_logs_become_the_query() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]}});
        let options = LogOptions { tail: Some(3), since: Some(Duration::from_millis(1)), ..Default::default() };
        assert_eq!(
            options.path("ns", &pod, true),
            "/api/v1/namespaces/ns/pods/p/log?container=c&follow=true&tailLines=3&sinceSeconds=1"
        );
    }
}
