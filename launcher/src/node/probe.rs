//! Probes and lifecycle hooks of a container: what they ask, when a probe is due, what its answers mean. Pure.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Startup => "startup",
            Kind::Liveness => "liveness",
            Kind::Readiness => "readiness",
        })
    }
}

/// What a probe or a hook does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// A command in the container; it succeeds with exit code 0.
    Exec(Vec<String>),
    /// A connection.
    Tcp {
        host: String,
        port: u16,
    },
    /// A GET request; it succeeds with a status from 200 to 399.
    Http {
        host: String,
        port: u16,
        path: String,
        headers: Vec<(String, String)>,
    },
    Sleep(SignedDuration),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Probe {
    pub(crate) kind: Kind,
    pub(crate) action: Action,
    pub(crate) timeout: SignedDuration,
    /// How long the container has to end after it failed this probe; else the pod's own grace counts.
    pub(crate) grace_seconds: Option<i64>,
    initial_delay: SignedDuration,
    period: SignedDuration,
    success_threshold: u32,
    failure_threshold: u32,
}

/// The course of one probe on one start of its container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Course {
    pub(crate) due: Timestamp,
    /// An answer is on its way.
    pub(crate) asking: bool,
    last: bool,
    in_a_row: u32,
}

impl Probe {
    pub(crate) fn begin(&self, started: Timestamp) -> Course {
        let due = started.saturating_add(self.initial_delay).unwrap_or(Timestamp::MAX);
        Course { due, asking: false, last: true, in_a_row: 0 }
    }

    /// Takes an answer; whether the probe has passed or failed by now, `None` while that is open.
    pub(crate) fn answered(&self, course: &mut Course, now: Timestamp, success: bool) -> Option<bool> {
        course.asking = false;
        course.due = now.saturating_add(self.period).unwrap_or(Timestamp::MAX);
        course.in_a_row = if course.last == success { course.in_a_row.saturating_add(1) } else { 1 };
        course.last = success;
        let needed = if success { self.success_threshold } else { self.failure_threshold };
        (course.in_a_row >= needed).then_some(success)
    }
}

/// The probes of a container, and the names of the fields that cannot be carried out.
pub(crate) fn probes(container: &core::Container, host: &str) -> (Vec<Probe>, Vec<&'static str>) {
    let (mut probes, mut unsupported) = (Vec::new(), Vec::new());
    for (kind, probe, field) in [
        (Kind::Startup, &container.startup_probe, "startupProbe"),
        (Kind::Liveness, &container.liveness_probe, "livenessProbe"),
        (Kind::Readiness, &container.readiness_probe, "readinessProbe"),
    ] {
        let Some(probe) = probe else { continue };
        let seconds = |value: Option<i32>, least: i32, usual: i32| {
            SignedDuration::from_secs(i64::from(value.filter(|v| *v >= least).unwrap_or(usual)))
        };
        let count = |value: Option<i32>, usual: u32| {
            value.and_then(|v| u32::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(usual)
        };
        let asked = Asked { exec: &probe.exec, http: &probe.http_get, tcp: &probe.tcp_socket, sleep: None };
        match asked.action(container, host) {
            Some(action) => probes.push(Probe {
                kind,
                action,
                timeout: seconds(probe.timeout_seconds, 1, 1),
                grace_seconds: probe.termination_grace_period_seconds,
                initial_delay: seconds(probe.initial_delay_seconds, 0, 0),
                period: seconds(probe.period_seconds, 1, 10),
                success_threshold: count(probe.success_threshold, 1),
                failure_threshold: count(probe.failure_threshold, 3),
            }),
            None => unsupported.push(field),
        }
    }
    (probes, unsupported)
}

/// A hook's action; `Err` where there is one that cannot be carried out.
pub(crate) fn hook(
    handler: Option<&core::LifecycleHandler>,
    container: &core::Container,
    host: &str,
) -> Result<Option<Action>, ()> {
    let Some(handler) = handler else { return Ok(None) };
    let sleep = handler.sleep.as_ref().map(|sleep| sleep.seconds);
    let asked = Asked { exec: &handler.exec, http: &handler.http_get, tcp: &handler.tcp_socket, sleep };
    asked.action(container, host).map(Some).ok_or(())
}

/// What a probe or a hook asks for.
struct Asked<'a> {
    exec: &'a Option<core::ExecAction>,
    http: &'a Option<core::HTTPGetAction>,
    tcp: &'a Option<core::TCPSocketAction>,
    sleep: Option<i64>,
}

impl Asked<'_> {
    fn action(&self, container: &core::Container, host: &str) -> Option<Action> {
        let host = |given: &Option<String>| given.clone().filter(|h| !h.is_empty()).unwrap_or_else(|| host.to_owned());
        if let Some(exec) = self.exec {
            return exec.command.clone().filter(|command| !command.is_empty()).map(Action::Exec);
        }
        if let Some(tcp) = self.tcp {
            return Some(Action::Tcp { host: host(&tcp.host), port: port(&tcp.port, container)? });
        }
        if let Some(http) = self.http {
            let plain = http.scheme.as_deref().is_none_or(|scheme| scheme.eq_ignore_ascii_case("HTTP"));
            let headers: Vec<(String, String)> =
                http.http_headers.iter().flatten().map(|header| (header.name.clone(), header.value.clone())).collect();
            let path = http.path.clone().filter(|path| path.starts_with('/')).unwrap_or_else(|| "/".to_owned());
            // They go into the request as they are.
            let clean = |text: &str| !text.contains(|c: char| c.is_control());
            let fine = clean(&path) && !path.contains(' ') && headers.iter().all(|(n, v)| clean(n) && clean(v));
            let port = port(&http.port, container)?;
            return (plain && fine).then(|| Action::Http { host: host(&http.host), port, path, headers });
        }
        self.sleep.map(|seconds| Action::Sleep(SignedDuration::from_secs(seconds.max(0))))
    }
}

/// A number, or the name of one of the container's ports.
fn port(asked: &IntOrString, container: &core::Container) -> Option<u16> {
    let number = match asked {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => match name.parse() {
            Ok(number) => number,
            Err(_) => {
                let ports = container.ports.iter().flatten();
                ports.into_iter().find(|port| port.name.as_deref() == Some(name))?.container_port
            }
        },
    };
    u16::try_from(number).ok().filter(|number| *number > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn container(value: serde_json::Value) -> core::Container {
        serde_json::from_value(value).expect("a container")
    }

    #[test]
    fn a_probe_passes_and_fails_by_answers_in_a_row() {
        let container = container(json!({"name": "c", "readinessProbe": {
            "exec": {"command": ["true"]}, "initialDelaySeconds": 5, "periodSeconds": 2, "successThreshold": 2,
            "failureThreshold": 3}}));
        let (probes, unsupported) = probes(&container, "127.0.0.1");
        assert_eq!(unsupported, Vec::<&str>::new());
        let probe = &probes[0];
        let at = |seconds| Timestamp::from_second(seconds).expect("a time");
        let mut course = probe.begin(at(100));
        assert_eq!(course.due, at(105));
        let answers = [true, true, false, false, true, false, false, false, false, true, true];
        let open = None;
        let verdicts = [open, Some(true), open, open, open, open, open, Some(false), Some(false), open, Some(true)];
        for (answer, verdict) in answers.into_iter().zip(verdicts) {
            assert_eq!(probe.answered(&mut course, at(200), answer), verdict);
        }
        assert_eq!(course.due, at(202));
    }

    #[test]
    fn ports_have_numbers_or_names_and_what_cannot_be_asked_is_told() {
        let container = container(json!({
            "name": "c", "ports": [{"name": "web", "containerPort": 8080}],
            "startupProbe": {"grpc": {"port": 1}},
            "livenessProbe": {"httpGet": {"port": "web", "path": "/ok"}},
            "readinessProbe": {"tcpSocket": {"port": "nothing"}}}));
        let (probes, unsupported) = probes(&container, "127.0.0.1");
        let (host, path) = ("127.0.0.1".to_owned(), "/ok".to_owned());
        assert_eq!(probes.len(), 1);
        assert_eq!(probes[0].action, Action::Http { host, port: 8080, path, headers: Vec::new() });
        assert_eq!(unsupported, ["startupProbe", "readinessProbe"]);
    }
}
