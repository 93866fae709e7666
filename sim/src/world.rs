//! One world: the API server over a memory store, the controllers with their unreliable connections, the machines and
//! the users, on one thread with a paused clock. First everything goes wrong that the scenario says; then the world
//! turns kind, and everything must come to rest.

use std::future::Future;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use muster_api::clock::Clock;
use muster_api::random::Random;
use muster_apiserver::{ApiServer, Backend, Identity, Options};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::faults::{Faulty, Life, Luck};
use crate::history::Shared;
use crate::invariants::{self, Violation};
use crate::machines::{self, Machines};
use crate::scenario::Scenario;
use crate::users;

/// What became of a world.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub violation: Option<Violation>,
    /// Every commit and every fault, in order; equal for equal seeds.
    pub trace: String,
    pub transactions: u64,
    /// Virtual time.
    pub lasted: Duration,
}

/// How long everything may take to come to rest.
const CONVERGENCE: Duration = Duration::from_secs(600);
/// How long it must stay at rest.
const REST: Duration = Duration::from_secs(20);

/// Runs the world of a seed.
pub fn run(seed: u64) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O needs nothing of the system");
    runtime.block_on(live(Scenario::from_seed(seed)))
}

async fn live(scenario: Scenario) -> Outcome {
    let start = tokio::time::Instant::now();
    let history = Shared::new(invariants::all(&scenario));
    let broken = Arc::clone(&history.broken);
    tokio::select! {
        biased;
        () = broken.notified() => {}
        result = unfold(&scenario, history.clone()) => {
            if let Err(error) = result {
                history.violate("harness", format!("{error:#}"));
            }
        }
    }
    let mut history = history.lock();
    Outcome {
        violation: history.violation.clone(),
        trace: history.take_trace(),
        transactions: history.transactions,
        lasted: start.elapsed(),
    }
}

async fn unfold(scenario: &Scenario, history: Shared) -> anyhow::Result<()> {
    let clock = machines::clock();
    let options = Options {
        backend: Backend::Custom(Box::new(history.clone())),
        clock: clock.clone(),
        random: Random::seeded(scenario.seed),
        crds: DEFINITIONS.clone(),
        ..Options::memory()
    };
    let server = ApiServer::open(options).await?;
    let luck = Luck::new(scenario.seed, scenario.faults.clone());
    let own = |name: &str| kube::Client::new(server.service(Identity::component(name)).brief(), "default");

    let mut parts = JoinSet::new();
    let machines = Machines::new(scenario.clone(), own("node"), history.clone(), clock.clone());
    parts.spawn(async move { machines.run().await.map_err(anyhow::Error::from) });
    let controllers = Controllers { server: server.clone(), luck: luck.clone(), history: history.clone() };
    let [operator_crashes, scheduler_crashes, cluster_crashes] = scenario.faults.crashes.clone();
    let (kept, at, seed) = (controllers.clone(), clock.clone(), scenario.seed);
    parts.spawn(async move {
        kept.keep("operator", operator_crashes, |client, life| operator(client, at.clone(), seed ^ life)).await
    });
    let (kept, at) = (controllers.clone(), clock.clone());
    parts.spawn(
        async move { kept.keep("scheduler", scheduler_crashes, |client, _| scheduler(client, at.clone())).await },
    );
    parts.spawn(async move {
        controllers.keep("cluster", cluster_crashes, |client, _| cluster(client, clock.clone())).await
    });

    let story = users::run(scenario, own("user"), history.clone());
    tokio::pin!(story);
    let healing = tokio::time::sleep(scenario.heal_at);
    tokio::pin!(healing);
    let mut told = false;
    let mut healed = false;
    while !(told && healed) {
        tokio::select! {
            biased;
            Some(ended) = parts.join_next() => ended??,
            result = &mut story, if !told => {
                result?;
                told = true;
            }
            () = &mut healing, if !healed => {
                history.note("the world heals");
                luck.heal();
                healed = true;
            }
        }
    }
    tokio::select! {
        biased;
        Some(ended) = parts.join_next() => ended?,
        () = come_to_rest(scenario, &history) => Ok(()),
    }
}

/// The definitions of the job kinds, with pod templates of any form: compiling and checking their long schema for
/// every world would take most of its time, and is tested elsewhere.
static DEFINITIONS: LazyLock<Vec<Value>> = LazyLock::new(|| {
    fn shorten(schema: &mut Value) {
        match schema {
            Value::Object(fields) => {
                for (name, field) in fields {
                    if name == "template" && field["type"] == "object" {
                        *field = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
                    } else {
                        shorten(field);
                    }
                }
            }
            Value::Array(items) => items.iter_mut().for_each(shorten),
            _ => {}
        }
    }
    let mut definitions = muster_api::crds();
    definitions.iter_mut().for_each(shorten);
    definitions
});

async fn come_to_rest(scenario: &Scenario, history: &Shared) {
    let limit = tokio::time::Instant::now() + CONVERGENCE;
    let mut rested_since = None;
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = tokio::time::Instant::now();
        let unsettled = invariants::unsettled(&history.lock().cluster, scenario);
        match unsettled {
            None if now - *rested_since.get_or_insert(now) >= REST => break,
            None => {}
            Some(what) if now >= limit => {
                history.violate(invariants::CONVERGENCE, format!("after {} s: {what}", CONVERGENCE.as_secs()));
                return;
            }
            Some(_) => rested_since = None,
        }
    }
    history.note("the world is at rest");
    history.at_rest();
}

/// Starts controllers, and starts them again when they die.
#[derive(Clone)]
struct Controllers {
    server: ApiServer,
    luck: Luck,
    history: Shared,
}

impl Controllers {
    /// Never ends, unless a controller does so in peace.
    async fn keep<F>(self, name: &str, crashes: Vec<u32>, start: impl Fn(kube::Client, u64) -> F) -> anyhow::Result<()>
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let mut crashes = crashes.into_iter();
        for number in 0.. {
            let life = Life::new(format!("{name}-{number}"), crashes.next());
            let service = self.server.service(Identity::component(name)).brief();
            let faulty = Faulty::new(service, self.luck.clone(), Arc::clone(&life), self.history.clone());
            let mut running: JoinHandle<_> = tokio::spawn(start(kube::Client::new(faulty, "default"), number));
            tokio::select! {
                biased;
                () = life.died.notified() => {
                    running.abort();
                    // The answer of an aborted task says nothing.
                    let _ = running.await;
                    self.history.note(format_args!("{} is dead", life.name));
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                ended = &mut running => match ended? {
                    Ok(()) => anyhow::bail!("{name} has ended by itself"),
                    // As whoever runs a controller does.
                    Err(error) => {
                        life.kill();
                        self.history.note(format_args!("{} has ended: {error:#}", life.name));
                        tokio::time::sleep(Duration::from_millis(500)).await;
                    }
                },
            }
        }
        Ok(())
    }
}

async fn operator(client: kube::Client, clock: Clock, seed: u64) -> anyhow::Result<()> {
    let config = muster_operator::training::Config {
        gang_scheduler: Some("muster".to_owned()),
        clock,
        random: Random::seeded(seed),
        port_is_free: Arc::new(|_| true),
        ..Default::default()
    };
    let (ready, _) = oneshot::channel();
    Ok(muster_operator::training::run(client, config, ready, CancellationToken::new()).await?)
}

async fn scheduler(client: kube::Client, clock: Clock) -> anyhow::Result<()> {
    let (ready, _) = oneshot::channel();
    let config = muster_launcher::gang::Config::new(clock);
    Ok(muster_launcher::gang::run(client, config, ready, CancellationToken::new()).await?)
}

async fn cluster(client: kube::Client, clock: Clock) -> anyhow::Result<()> {
    let (ready, _) = oneshot::channel();
    let config = muster_operator::cluster::Config { clock, ..Default::default() };
    Ok(muster_operator::cluster::run(client, config, ready, CancellationToken::new()).await?)
}
