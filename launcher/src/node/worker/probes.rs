//! A pod's probes and lifecycle hooks on their way: what is due is asked, answers change how its containers stand.

use super::{Done, GRACE_SECONDS, Worker, container_spec, later};
use crate::node::action::carry_out;
use crate::node::lifecycle::{Probed, State};
use crate::node::probe::{self, Action, Course, Kind, Probe};
use crate::node::runtime::Signal;
use futures::FutureExt;
use jiff::{SignedDuration, Timestamp};
use muster_events::Severity;
use std::time::Duration;

/// How long a hook after the start may take.
const POST_START_LIMIT: Duration = Duration::from_secs(3600);

/// The probes of one start of a container.
pub(super) struct Probing {
    attempt: u32,
    courses: Vec<(Probe, Course)>,
    /// The hook after the start runs.
    in_hook: bool,
    /// It was asked to end since it failed a probe or its hook; when it is killed.
    kill_at: Option<Timestamp>,
}

/// What was waited for.
pub(super) enum Answer {
    Probe(usize, Result<(), String>),
    PostStart(Result<(), String>),
    PreStop(Result<(), String>),
}

impl Worker {
    /// A container runs: since now, or since an earlier node started it.
    pub(super) fn begin_probing(&mut self, name: &str, attempt: u32, adopted: bool) {
        let Some(spec) = container_spec(&self.pod, name) else { return };
        let host = self.shared.address.pod_ip.clone();
        let (probes, _) = probe::probes(spec, &host);
        let hook = spec.lifecycle.as_ref().and_then(|l| l.post_start.as_ref());
        let hook = probe::hook(hook, spec, &host).ok().flatten().filter(|_| !adopted);
        let Some(known) = self.observed.containers.get_mut(name) else { return };
        let State::Running { started_at, .. } = known.state else { return };
        let has = |kind| probes.iter().any(|probe| probe.kind == kind);
        let started = hook.is_none() && !has(Kind::Startup);
        known.probed = Probed { started, ready: started && !has(Kind::Readiness) };
        if adopted {
            // It stays what it was until its probes say otherwise.
            let statuses = self.pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
            let of_this_start = |status: &&k8s_openapi::api::core::v1::ContainerStatus| {
                status.name == name && u32::try_from(status.restart_count) == Ok(attempt)
            };
            if let Some(status) = statuses.into_iter().find(of_this_start) {
                known.probed.started |= status.started == Some(true);
                known.probed.ready |= status.ready;
            }
        }
        let courses = probes.into_iter().map(|probe| (probe.begin(started_at), probe)).map(|(c, p)| (p, c)).collect();
        let in_hook = hook.is_some();
        self.probing.insert(name.to_owned(), Probing { attempt, courses, in_hook, kill_at: None });
        if let Some(action) = hook {
            self.act(name, attempt, action, POST_START_LIMIT, Answer::PostStart);
        }
    }

    fn act(
        &mut self,
        name: &str,
        attempt: u32,
        action: Action,
        limit: Duration,
        answer: impl FnOnce(Result<(), String>) -> Answer + Send + 'static,
    ) {
        let (runtime, id, container) = (self.shared.config.runtime.clone(), self.id(name, attempt), name.to_owned());
        self.work.push(
            async move {
                let answer = answer(carry_out(action, runtime, id, limit).await);
                Done::Answered { container, attempt, answer }
            }
            .boxed(),
        );
    }

    /// Asks what is due; when the next is.
    pub(super) fn probe(&mut self, now: Timestamp) -> Option<Timestamp> {
        let containers = &self.observed.containers;
        self.probing.retain(|name, probing| {
            let known = &containers[name];
            known.attempt == probing.attempt && matches!(known.state, State::Running { .. })
        });
        if self.observed.stop.is_some() {
            return None;
        }
        let (mut asked, mut kills, mut wake) = (Vec::new(), Vec::new(), None);
        let mut at = |time: Timestamp| wake = Some(wake.map_or(time, |before: Timestamp| before.min(time)));
        for (name, probing) in &mut self.probing {
            if let Some(kill_at) = probing.kill_at {
                if kill_at <= now {
                    // Once more, should it be needed; it is not, since nothing survives it.
                    probing.kill_at = Some(Timestamp::MAX);
                    kills.push(name.clone());
                } else if kill_at < Timestamp::MAX {
                    at(kill_at);
                }
                continue;
            }
            let started = containers[name].probed.started;
            for (index, (probe, course)) in probing.courses.iter_mut().enumerate() {
                if probing.in_hook || course.asking || started == (probe.kind == Kind::Startup) {
                    continue;
                }
                if course.due > now {
                    at(course.due);
                    continue;
                }
                course.asking = true;
                asked.push((name.clone(), probing.attempt, index, probe.clone()));
            }
        }
        for (name, attempt, index, probe) in asked {
            let limit = Duration::try_from(probe.timeout).unwrap_or_default();
            self.act(&name, attempt, probe.action, limit, move |result| Answer::Probe(index, result));
        }
        kills.iter().for_each(|name| self.signal(name, Signal::Kill));
        wake
    }

    pub(super) fn answered(&mut self, now: Timestamp, container: &str, attempt: u32, answer: Answer) {
        match answer {
            Answer::Probe(index, result) => self.probe_answered(now, container, attempt, index, result),
            Answer::PreStop(result) => {
                if let Err(why) = result {
                    let message = format!("PreStopHook failed: {why}");
                    self.container_event(container, Severity::Warning, "FailedPreStopHook", message);
                }
                if self.observed.containers[container].attempt == attempt {
                    self.signal(container, Signal::Terminate);
                }
            }
            Answer::PostStart(result) => {
                let Some(probing) = self.probing.get_mut(container).filter(|p| p.attempt == attempt) else { return };
                probing.in_hook = false;
                let has = |kind| probing.courses.iter().any(|(probe, _)| probe.kind == kind);
                let started = !has(Kind::Startup);
                let probed = Probed { started, ready: started && !has(Kind::Readiness) };
                match result {
                    Ok(()) => {
                        if let Some(known) = self.observed.containers.get_mut(container) {
                            known.probed = probed;
                        }
                    }
                    Err(why) => {
                        let message = format!("PostStartHook failed: {why}");
                        self.container_event(container, Severity::Warning, "FailedPostStartHook", message);
                        self.end_container(now, container, None, "its hook after the start failed");
                    }
                }
            }
        }
    }

    fn probe_answered(&mut self, now: Timestamp, name: &str, attempt: u32, index: usize, result: Result<(), String>) {
        let Some(probing) = self.probing.get_mut(name).filter(|p| p.attempt == attempt) else { return };
        let Some((probe, course)) = probing.courses.get_mut(index) else { return };
        let verdict = probe.answered(course, now, result.is_ok());
        let (kind, grace) = (probe.kind, probe.grace_seconds);
        let has_readiness = probing.courses.iter().any(|(probe, _)| probe.kind == Kind::Readiness);
        if self.observed.stop.is_some() || probing.kill_at.is_some() {
            return;
        }
        if let Some(known) = self.observed.containers.get_mut(name) {
            match (kind, verdict) {
                (Kind::Startup, Some(true)) => known.probed = Probed { started: true, ready: !has_readiness },
                (Kind::Readiness, Some(ready)) => known.probed.ready = ready,
                _ => {}
            }
        }
        if let Err(why) = result {
            let word = kind.to_string();
            let message = format!("{}{} probe failed: {why}", word[..1].to_uppercase(), &word[1..]);
            self.container_event(name, Severity::Warning, "Unhealthy", message);
        }
        if kind != Kind::Readiness && verdict == Some(false) {
            self.end_container(now, name, grace, &format!("failed {kind} probe"));
        }
    }

    /// Ends one container, for its restart policy to decide what comes next.
    fn end_container(&mut self, now: Timestamp, name: &str, grace: Option<i64>, why: &str) {
        let own = self.pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
        let grace = SignedDuration::from_secs(grace.or(own).unwrap_or(GRACE_SECONDS).max(0));
        if let Some(probing) = self.probing.get_mut(name) {
            probing.kill_at = Some(later(now, grace));
        }
        self.container_event(name, Severity::Normal, "Killing", format!("Container {name} {why}, will be ended"));
        self.terminate(name, grace);
    }

    /// Asks a container to end: by its hook first, where it has one.
    pub(super) fn terminate(&mut self, name: &str, grace: SignedDuration) {
        let host = self.shared.address.pod_ip.clone();
        let known = &self.observed.containers[name];
        let (attempt, running) = (known.attempt, matches!(known.state, State::Running { .. }));
        let hook = container_spec(&self.pod, name).and_then(|spec| {
            let hook = spec.lifecycle.as_ref()?.pre_stop.as_ref();
            probe::hook(hook, spec, &host).ok().flatten()
        });
        match hook.filter(|_| running) {
            Some(action) => {
                let limit = Duration::try_from(grace).unwrap_or_default();
                self.act(name, attempt, action, limit, Answer::PreStop);
            }
            None => self.signal(name, Signal::Terminate),
        }
    }
}
