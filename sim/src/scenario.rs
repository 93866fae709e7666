//! Everything that a seed decides beforehand: the machines, the jobs and how their processes end, and how unkind the
//! world is meanwhile. Pure: the same seed gives the same scenario.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

pub const NAMESPACES: [&str; 2] = ["default", "team"];

#[derive(Clone, Debug)]
pub struct Scenario {
    pub seed: u64,
    pub nodes: Vec<NodePlan>,
    pub jobs: Vec<JobPlan>,
    pub faults: Faults,
    /// When the world turns kind.
    pub heal_at: Duration,
}

#[derive(Clone, Debug)]
pub struct NodePlan {
    pub name: String,
    pub cpus: u32,
    pub gpus: u32,
    /// When the machine dies, and for how long.
    pub outage: Option<(Duration, Duration)>,
}

#[derive(Clone, Debug)]
pub struct JobPlan {
    pub namespace: &'static str,
    pub name: String,
    /// The plural of its kind.
    pub plural: &'static str,
    pub manifest: Value,
    pub submit_at: Duration,
    /// When the user changes `runPolicy.suspend`, and to what.
    pub suspend: Vec<(Duration, bool)>,
    pub delete_at: Option<Duration>,
    /// No cluster of the scenario has room for it.
    pub too_large: bool,
}

/// How often what goes wrong, per request or per frame of a watch, in thousandths.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// The request is refused: somebody else was faster.
    pub conflict: u32,
    /// The request is refused with 500, 503 or 429.
    pub error: u32,
    /// The request is carried out, but its answer does not arrive.
    pub lost_answer: u32,
    /// A watch begins with 410 Gone.
    pub gone: u32,
    /// A watch ends.
    pub drop: u32,
    /// An event comes twice.
    pub duplicate: u32,
    /// The longest delay of a request, and of a frame of a watch.
    pub delay: Duration,
    pub lag: Duration,
    /// After how many writes each incarnation of a controller dies, by controller.
    pub crashes: [Vec<u32>; 3],
}

/// How a process of a pod ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ending {
    pub after: Duration,
    pub exit_code: i32,
}

struct Dice(StdRng);

impl Dice {
    fn below(&mut self, bound: u32) -> u32 {
        self.0.random_range(0..bound)
    }

    fn one_in(&mut self, n: u32) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Clone>(&mut self, values: &[T]) -> T {
        values[self.below(values.len() as u32) as usize].clone()
    }

    fn millis(&mut self, from: u32, to: u32) -> Duration {
        Duration::from_millis(u64::from(from + self.below(to - from)))
    }
}

impl Scenario {
    pub fn from_seed(seed: u64) -> Scenario {
        let mut dice = Dice(StdRng::seed_from_u64(seed));
        let heal_at = Duration::from_secs(dice.pick(&[15, 30, 60]));
        let nodes: Vec<NodePlan> = (0..1 + dice.below(3))
            .map(|index| NodePlan {
                name: format!("node-{index}"),
                cpus: dice.pick(&[4, 8]),
                gpus: dice.pick(&[0, 2, 4]),
                outage: dice
                    .one_in(5)
                    .then(|| (dice.millis(1000, heal_at.as_millis() as u32), dice.millis(500, 20_000))),
            })
            .collect();
        let jobs = (0..1 + dice.below(3)).map(|index| JobPlan::new(index, &nodes, heal_at, &mut dice)).collect();
        Scenario { seed, nodes, jobs, faults: Faults::new(&mut dice), heal_at }
    }

    /// How the `attempt`-th process of a pod ends. By name, so that it does not depend on the order of things.
    pub fn ending(&self, namespace: &str, pod: &str, attempt: u32) -> Ending {
        let mut state = self.seed ^ 0x5EED;
        for byte in namespace.bytes().chain(pod.bytes()).chain(attempt.to_le_bytes()) {
            state = (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
        }
        let mut dice = Dice(StdRng::seed_from_u64(state));
        // In the end everything succeeds.
        let fails = attempt < 3 && dice.one_in(4);
        let exit_code = if fails { dice.pick(&[1, 2, 130, 137, 143]) } else { 0 };
        Ending { after: dice.millis(200, 15_000), exit_code }
    }
}

impl Faults {
    fn new(dice: &mut Dice) -> Faults {
        // One scenario in eight is calm, so that a failure of the harness itself is seen as such.
        if dice.one_in(8) {
            return Faults::default();
        }
        let mut rate = |values: &[u32]| dice.pick(values);
        let mut faults = Faults {
            conflict: rate(&[0, 30, 150]),
            error: rate(&[0, 20, 100]),
            lost_answer: rate(&[0, 20, 100]),
            gone: rate(&[0, 100, 300]),
            drop: rate(&[0, 20, 100]),
            duplicate: rate(&[0, 50]),
            delay: Duration::from_millis(rate(&[0, 20, 500]).into()),
            lag: Duration::from_millis(rate(&[0, 50, 2000]).into()),
            crashes: Default::default(),
        };
        for crashes in &mut faults.crashes {
            *crashes = (0..dice.below(4)).map(|_| 1 + dice.below(15)).collect();
        }
        faults
    }
}

struct Role {
    name: &'static str,
    replicas: u32,
}

impl JobPlan {
    fn new(index: u32, nodes: &[NodePlan], heal_at: Duration, dice: &mut Dice) -> JobPlan {
        let kind = dice.below(6);
        let workers = dice.below(4);
        let (kind, plural, field, container, roles) = match kind {
            0 => ("TFJob", "tfjobs", "tfReplicaSpecs", "tensorflow", vec![("Chief", 1), ("Worker", workers.max(1))]),
            1 => (
                "MXJob",
                "mxjobs",
                "mxReplicaSpecs",
                "mxnet",
                vec![("Scheduler", 1), ("Server", 1), ("Worker", workers.max(1))],
            ),
            _ => ("PyTorchJob", "pytorchjobs", "pytorchReplicaSpecs", "pytorch", {
                let mut roles = vec![("Master", 1)];
                if workers > 0 {
                    roles.push(("Worker", workers));
                }
                roles
            }),
        };
        let roles: Vec<Role> = roles.into_iter().map(|(name, replicas)| Role { name, replicas }).collect();
        let too_large = dice.one_in(10);
        let all_gpus: u32 = nodes.iter().map(|node| node.gpus).sum();
        let most_gpus: u32 = nodes.iter().map(|node| node.gpus).max().unwrap_or(0);
        let pods: u32 = roles.iter().map(|role| role.replicas).sum();
        // Jobs of a GPU a pod must fit the cluster when they are alone.
        let gpus = match too_large {
            true => most_gpus + 1,
            false if pods <= all_gpus && !dice.one_in(3) => 1,
            false => 0,
        };
        let restart_policy = dice.pick(&["Never", "OnFailure", "ExitCode", "ExitCode"]);
        let mut specs = serde_json::Map::new();
        for role in &roles {
            let mut limits = json!({"cpu": "100m", "memory": "64Mi"});
            if gpus > 0 {
                limits["nvidia.com/gpu"] = json!(gpus);
            }
            let spec = json!({
                "replicas": role.replicas,
                "restartPolicy": restart_policy,
                "template": {"spec": {"containers": [{
                    "name": container, "image": "simulated", "resources": {"limits": limits},
                }]}},
            });
            specs.insert(role.name.to_owned(), spec);
        }
        let mut policy = json!({"cleanPodPolicy": dice.pick(&["None", "Running", "All"])});
        if dice.one_in(3) {
            policy["backoffLimit"] = json!(dice.below(4));
        }
        if dice.one_in(5) {
            policy["activeDeadlineSeconds"] = json!(5 + dice.below(60));
        }
        if dice.one_in(5) {
            policy["ttlSecondsAfterFinished"] = json!(dice.below(20));
        }
        let horizon = heal_at.as_millis() as u32;
        let submit_at = dice.millis(0, horizon / 2);
        let mut suspend = Vec::new();
        if dice.one_in(4) {
            policy["suspend"] = json!(dice.one_in(2));
            let mut at = submit_at;
            // The last change lets the job run.
            for to in if dice.one_in(2) { vec![true, false] } else { vec![false] } {
                at += dice.millis(500, 8000);
                suspend.push((at, to));
            }
        }
        let delete_at = dice.one_in(6).then(|| submit_at + dice.millis(200, 20_000));
        let namespace = dice.pick(&NAMESPACES);
        let name = format!("job-{index}");
        let mut manifest = json!({
            "apiVersion": "kubeflow.org/v1",
            "kind": kind,
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"runPolicy": policy, field: specs},
        });
        if kind == "MXJob" {
            manifest["spec"]["jobMode"] = json!("MXTrain");
        }
        JobPlan { namespace, name, plural, manifest, submit_at, suspend, delete_at, too_large }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_scenario_again() {
        for seed in 0..50 {
            let (a, b) = (Scenario::from_seed(seed), Scenario::from_seed(seed));
            assert_eq!(format!("{a:?}"), format!("{b:?}"));
            assert_eq!(a.ending("default", "job-0-master-0", 1), b.ending("default", "job-0-master-0", 1));
        }
    }

    #[test]
    fn every_process_succeeds_in_the_end() {
        for seed in 0..50 {
            assert_eq!(Scenario::from_seed(seed).ending("default", "pod", 3).exit_code, 0);
        }
    }
}
