//! The simulated machines: they register as nodes, run the pods that are bound to them as the scenario says, die and
//! come back. They talk to the API server as a kubelet does, by kind and status, without faults of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod as PodObject};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use muster_api::clock::Clock;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::cluster::{GPU, Pod, is_deleting};
use crate::history::Shared;
use crate::scenario::{Ending, NodePlan, Scenario};

/// How often the machines look.
const TICK: Duration = Duration::from_millis(250);

pub struct Machines {
    scenario: Scenario,
    client: kube::Client,
    history: Shared,
    clock: Clock,
    start: Instant,
    rng: StdRng,
    /// By uid.
    processes: BTreeMap<String, Process>,
    down: BTreeSet<String>,
    /// How many processes a pod of this namespace and name has had.
    attempts: BTreeMap<(String, String), u32>,
}

struct Process {
    state: State,
    restarts: u32,
}

enum State {
    Starting { at: Instant },
    Running { ends: Instant, exit_code: i32 },
    Ended,
    Stopping { at: Instant },
}

/// What a machine knows of a pod when it looks.
struct Seen {
    namespace: String,
    name: String,
    uid: String,
    container: String,
    restarts_in_place: bool,
    finished: bool,
    deleting: bool,
}

impl Machines {
    pub fn new(scenario: Scenario, client: kube::Client, history: Shared, clock: Clock) -> Machines {
        let rng = StdRng::seed_from_u64(scenario.seed ^ 0x0DE5);
        Machines {
            scenario,
            client,
            history,
            clock,
            start: Instant::now(),
            rng,
            processes: BTreeMap::new(),
            down: BTreeSet::new(),
            attempts: BTreeMap::new(),
        }
    }

    pub async fn run(mut self) -> Result<(), kube::Error> {
        for plan in self.scenario.nodes.clone() {
            self.register(&plan).await?;
        }
        let mut ticks = tokio::time::interval(TICK);
        loop {
            ticks.tick().await;
            self.outages().await?;
            for plan in self.scenario.nodes.clone() {
                if !self.down.contains(&plan.name) {
                    self.look(&plan.name).await?;
                }
            }
        }
    }

    async fn register(&self, plan: &NodePlan) -> Result<(), kube::Error> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let resources = json!({
            "cpu": plan.cpus.to_string(), "memory": "16Gi", "pods": "32", GPU: plan.gpus.to_string(),
        });
        let node = json!({
            "metadata": {"name": plan.name, "labels": {"kubernetes.io/hostname": plan.name}},
            "status": {"capacity": resources, "allocatable": resources},
        });
        let node: Node = serde_json::from_value(node).expect("a node");
        nodes.create(&PostParams::default(), &node).await?;
        let patch = json!({"status": {"capacity": resources, "allocatable": resources}});
        nodes.patch_status(&plan.name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        self.condition(&plan.name, true).await
    }

    async fn condition(&self, node: &str, ready: bool) -> Result<(), kube::Error> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let (status, now) = (if ready { "True" } else { "Unknown" }, self.clock.now_rfc3339());
        let condition = json!({
            "type": "Ready", "status": status, "reason": "Simulated", "message": "",
            "lastHeartbeatTime": now, "lastTransitionTime": now,
        });
        let patch = json!({"status": {"conditions": [condition]}});
        nodes.patch_status(node, &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok(())
    }

    async fn outages(&mut self) -> Result<(), kube::Error> {
        let elapsed = self.start.elapsed();
        for plan in self.scenario.nodes.clone() {
            let Some((at, duration)) = plan.outage else { continue };
            let is_down = (at..at + duration).contains(&elapsed);
            if is_down && self.down.insert(plan.name.clone()) {
                self.history.note(format_args!("{} goes down", plan.name));
                self.condition(&plan.name, false).await?;
            } else if !is_down && self.down.remove(&plan.name) {
                self.history.note(format_args!("{} is back", plan.name));
                self.come_back(&plan.name).await?;
                self.condition(&plan.name, true).await?;
            }
        }
        Ok(())
    }

    /// The processes of a machine that was down are gone; their pods have failed.
    async fn come_back(&mut self, node: &str) -> Result<(), kube::Error> {
        for pod in self.pods_of(node) {
            let Some(process) = self.processes.get_mut(&pod.uid) else { continue };
            if matches!(process.state, State::Running { .. }) {
                process.state = State::Ended;
                let restarts = process.restarts;
                let status = self.status(&pod, "Failed", json!({"terminated": self.terminated(137)}), restarts);
                self.report(&pod, status).await?;
            }
        }
        Ok(())
    }

    fn pods_of(&self, node: &str) -> Vec<Seen> {
        let history = self.history.lock();
        let seen = history.cluster.pods().filter(|(_, pod)| pod.node() == Some(node)).map(|(key, pod)| Seen {
            namespace: key.namespace().to_owned(),
            name: key.name().to_owned(),
            uid: pod.uid().to_owned(),
            container: pod.0.pointer("/spec/containers/0/name").and_then(Value::as_str).unwrap_or_default().to_owned(),
            restarts_in_place: restarts_in_place(pod),
            finished: pod.is_finished(),
            deleting: is_deleting(pod.0),
        });
        seen.collect()
    }

    fn soon(&mut self, from: u64, to: u64) -> Instant {
        Instant::now() + Duration::from_millis(self.rng.random_range(from..to))
    }

    async fn look(&mut self, node: &str) -> Result<(), kube::Error> {
        for pod in self.pods_of(node) {
            self.step(&pod).await?;
        }
        Ok(())
    }

    /// Moves one pod on, if its time has come.
    async fn step(&mut self, pod: &Seen) -> Result<(), kube::Error> {
        let now = Instant::now();
        if !self.processes.contains_key(&pod.uid) {
            let state = match pod.finished {
                true => State::Ended,
                // One pod in eight takes its time.
                false if self.rng.random_range(0..8) == 0 => State::Starting { at: self.soon(5_000, 20_000) },
                false => State::Starting { at: self.soon(50, 1_500) },
            };
            self.processes.insert(pod.uid.clone(), Process { state, restarts: 0 });
        }
        if pod.deleting {
            let stop = self.soon(100, 1_500);
            let Some(process) = self.processes.get_mut(&pod.uid) else { return Ok(()) };
            match process.state {
                State::Stopping { at } if at <= now => return self.remove(pod).await,
                State::Stopping { .. } => {}
                _ => process.state = State::Stopping { at: stop },
            }
            return Ok(());
        }
        let Some(process) = self.processes.get(&pod.uid) else { return Ok(()) };
        let restarts = process.restarts;
        let (state, status) = match process.state {
            State::Starting { at } if at <= now => {
                let ending = self.next_ending(pod);
                let running = json!({"running": {"startedAt": self.clock.now_rfc3339()}});
                let state = State::Running { ends: now + ending.after, exit_code: ending.exit_code };
                (state, self.status(pod, "Running", running, restarts))
            }
            State::Running { ends, exit_code } if ends <= now => {
                if exit_code != 0 && pod.restarts_in_place {
                    let ending = self.next_ending(pod);
                    if let Some(process) = self.processes.get_mut(&pod.uid) {
                        process.restarts += 1;
                    }
                    let running = json!({"running": {"startedAt": self.clock.now_rfc3339()}});
                    let state = State::Running { ends: now + ending.after, exit_code: ending.exit_code };
                    (state, self.status(pod, "Running", running, restarts + 1))
                } else {
                    let phase = if exit_code == 0 { "Succeeded" } else { "Failed" };
                    let ended = json!({"terminated": self.terminated(exit_code)});
                    (State::Ended, self.status(pod, phase, ended, restarts))
                }
            }
            _ => return Ok(()),
        };
        if let Some(process) = self.processes.get_mut(&pod.uid) {
            process.state = state;
        }
        self.report(pod, status).await
    }

    fn next_ending(&mut self, pod: &Seen) -> Ending {
        let attempt = self.attempts.entry((pod.namespace.clone(), pod.name.clone())).or_default();
        *attempt += 1;
        self.scenario.ending(&pod.namespace, &pod.name, *attempt - 1)
    }

    fn terminated(&self, exit_code: i32) -> Value {
        let now = self.clock.now_rfc3339();
        let reason = if exit_code == 0 { "Completed" } else { "Error" };
        json!({"exitCode": exit_code, "reason": reason, "startedAt": now, "finishedAt": now})
    }

    fn status(&self, pod: &Seen, phase: &str, state: Value, restarts: u32) -> Value {
        let ready = phase == "Running";
        json!({
            "phase": phase,
            "podIP": "127.0.0.1",
            "startTime": self.clock.now_rfc3339(),
            "containerStatuses": [{
                "name": pod.container, "image": "simulated", "imageID": "", "ready": ready,
                "restartCount": restarts, "state": state,
            }],
        })
    }

    async fn report(&self, pod: &Seen, status: Value) -> Result<(), kube::Error> {
        let pods: Api<PodObject> = Api::namespaced(self.client.clone(), &pod.namespace);
        // For this pod only, not for a new one of its name.
        let patch = json!({"metadata": {"uid": pod.uid}, "status": status});
        allowed(pods.patch_status(&pod.name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop))
    }

    async fn remove(&mut self, pod: &Seen) -> Result<(), kube::Error> {
        let pods: Api<PodObject> = Api::namespaced(self.client.clone(), &pod.namespace);
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: Some(pod.uid.clone()), resource_version: None }),
            ..DeleteParams::default()
        };
        self.processes.remove(&pod.uid);
        allowed(pods.delete(&pod.name, &params).await.map(drop))
    }
}

/// The pod may have gone, or changed, in the meantime; the next look sees it as it is.
fn allowed(result: Result<(), kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        other => other,
    }
}

fn restarts_in_place(pod: Pod<'_>) -> bool {
    matches!(pod.0["spec"]["restartPolicy"].as_str(), None | Some("Always" | "OnFailure"))
}

/// The clock of a simulated world: a fixed start, and tokio's paused time since then.
pub fn clock() -> Clock {
    let start = Instant::now();
    let epoch = Timestamp::from_second(1_750_000_000).expect("a valid time");
    Clock::from_fn(move || epoch.checked_add(start.elapsed()).unwrap_or(epoch))
}
