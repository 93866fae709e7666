//! The roles of a server, and how they start and end together.
//!
//! Start: everything is bound and opened first, then the API is served, then the roles run, each with a client of its
//! own; ready is when each says so. End: what decides stops first, so that nothing is recreated; then the node ends its
//! pods; then the API, so that their last states are stored.

mod apiserver;
mod controllers;
mod node;
mod operator;
mod scheduler;

use crate::cli::Role;
use crate::data_folder::{DataFolder, Holder};
use crate::kubeconfig;
use crate::settings::{ServerSettings, name};
use anyhow::{Context, Result, anyhow};
use kube::config::{KubeConfigOptions, Kubeconfig};
use muster_api::clock::Clock;
use muster_apiserver::Readiness;
use std::path::Path;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The bugs that the simulation plants have no way into this binary.
const _: () = assert!(!muster_planted::POSSIBLE);

/// How long the roles may take to become ready before that is an error.
const START: Duration = Duration::from_secs(60);
/// How long the API server of a kubeconfig may take before it is said that one waits for it.
const FIRST_ANSWER: Duration = Duration::from_secs(2);

/// A running server.
pub(crate) struct Server {
    settings: ServerSettings,
    url: String,
    client: kube::Client,
    api: Option<apiserver::Running>,
    deciders: Group,
    node: Group,
    killer: Option<node::Killer>,
    // Held until everything else has ended.
    _folder: DataFolder,
}

/// Roles that start and end together.
#[derive(Default)]
struct Group {
    stop: CancellationToken,
    tasks: JoinSet<(Role, Result<()>)>,
}

/// Tells that a role is ready, and is awaited by the start.
type Ready = oneshot::Receiver<()>;

impl Server {
    /// Returns once every role is ready.
    pub(crate) async fn start(settings: ServerSettings) -> Result<Server> {
        let folder = DataFolder::open(&settings.data_dir, Clock::system().now_rfc3339())?;
        let readiness = Readiness::default();
        for role in settings.roles.iter().filter(|role| **role != Role::Apiserver) {
            readiness.expect(&name(*role));
        }
        let mut ports = folder.ports();
        let operator = match settings.has(Role::Operator) {
            true => Some(operator::prepare(&settings, &folder, &mut ports).await?),
            false => None,
        };
        let prepared_node = settings.has(Role::Node).then(|| node::prepare(&settings, &folder)).transpose()?;
        let nodes = prepared_node.as_ref().map(node::Prepared::http);
        let killer = prepared_node.as_ref().map(node::Prepared::killer);
        let metrics = operator.as_ref().map(operator::Prepared::metrics);
        let api = match settings.has(Role::Apiserver) {
            true => {
                kubeconfig::check_writable(&settings.kubeconfig)?;
                Some(apiserver::start(&settings, &folder, readiness.clone(), nodes, metrics, &mut ports).await?)
            }
            false => None,
        };
        let (url, client) = match &api {
            Some(api) => (api.url.clone(), api.client("muster")),
            None => {
                let (url, client) = remote(&settings.kubeconfig).await?;
                // The roles wait for it, without a word.
                match tokio::time::timeout(FIRST_ANSWER, client.apiserver_version()).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => tracing::warn!(url, %error, "the API server does not answer yet"),
                    Err(_) => tracing::warn!(url, "the API server does not answer yet"),
                }
                (url, client)
            }
        };
        let as_component = |component: &str| match &api {
            Some(api) => api.client(component),
            None => client.clone(),
        };

        let (mut deciders, mut node) = (Group::default(), Group::default());
        let mut waiting: Vec<(Role, Ready)> = Vec::new();
        if settings.has(Role::Controllers) {
            let config = controllers::config(&settings, &folder.file("ca.crt"))?;
            let client = as_component("controllers");
            let ready = deciders.run(Role::Controllers, |ready, stop| controllers::run(client, config, ready, stop));
            waiting.push((Role::Controllers, ready));
        }
        if let Some(operator) = operator {
            let ready = deciders.run(Role::Operator, |ready, stop| operator.run(as_component("operator"), ready, stop));
            waiting.push((Role::Operator, ready));
        }
        if settings.has(Role::Scheduler) {
            let ready =
                deciders.run(Role::Scheduler, |ready, stop| scheduler::run(as_component("scheduler"), ready, stop));
            waiting.push((Role::Scheduler, ready));
        }
        if let Some(prepared) = prepared_node {
            let (client, address) = (as_component("node"), api.as_ref().map(|api| api.address));
            let ready = node.run(Role::Node, |ready, stop| prepared.run(client, address, ready, stop));
            waiting.push((Role::Node, ready));
        }
        folder.keep_ports(ports)?;
        folder.announce(&Holder {
            pid: std::process::id(),
            since: Clock::system().now_rfc3339(),
            server: url.clone(),
        })?;

        let mut server = Server { settings, url, client, api, deciders, node, killer, _folder: folder };
        let all_ready = async {
            for (role, ready) in waiting {
                // A role that ended instead is told by `failure`.
                if ready.await.is_ok() {
                    readiness.set(&name(role), true);
                } else {
                    std::future::pending::<()>().await;
                }
            }
        };
        let outcome = tokio::select! {
            biased;
            failure = server.failure() => Err(failure),
            result = tokio::time::timeout(START, all_ready) => result.map_err(|_| {
                let parts = readiness.parts();
                let late: Vec<&str> = parts.iter().filter(|(_, ready)| !**ready).map(|(part, _)| part.as_str()).collect();
                anyhow!("not ready after {} s: {}", START.as_secs(), late.join(", "))
            }),
        };
        if let Err(error) = outcome {
            server.drain().await;
            return Err(error);
        }
        tokio::spawn(crate::memory::give_back());
        Ok(server)
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn kubeconfig(&self) -> &Path {
        &self.settings.kubeconfig
    }

    /// An administrator's client.
    pub(crate) fn client(&self) -> kube::Client {
        self.client.clone()
    }

    /// Ends when a role ends that nobody told to.
    pub(crate) async fn failure(&mut self) -> anyhow::Error {
        tokio::select! {
            biased;
            failure = self.deciders.failure() => failure,
            failure = self.node.failure() => failure,
        }
    }

    /// The ordered end: no process of a pod is left.
    pub(crate) async fn drain(&mut self) {
        self.deciders.end().await;
        self.node.end().await;
        if let Some(api) = self.api.take() {
            api.end().await;
        }
    }

    /// The end without patience: pods get no time.
    pub(crate) async fn kill(&mut self) {
        // Again and again, for a pod may be just starting.
        let killer = self.killer.clone();
        let killing = async {
            while let Some(killer) = &killer {
                killer.kill_all().await;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            std::future::pending().await
        };
        tokio::select! {
            biased;
            () = self.drain() => {}
            () = killing => {}
        }
    }
}

impl Group {
    fn run<F>(&mut self, role: Role, start: impl FnOnce(oneshot::Sender<()>, CancellationToken) -> F) -> Ready
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        let work = start(sender, self.stop.clone());
        self.tasks.spawn(async move { (role, work.await) });
        receiver
    }

    async fn failure(&mut self) -> anyhow::Error {
        match self.tasks.join_next().await {
            None => std::future::pending().await,
            Some(Ok((role, Ok(())))) => anyhow!("the role {} ended by itself", name(role)),
            Some(Ok((role, Err(error)))) => error.context(format!("the role {} ended", name(role))),
            Some(Err(error)) => anyhow!("a role ended: {error}"),
        }
    }

    async fn end(&mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            match ended {
                Ok((role, Ok(()))) => tracing::debug!(role = name(role), "ended"),
                Ok((role, Err(error))) => tracing::error!(role = name(role), error = format!("{error:#}"), "ended"),
                Err(error) => tracing::error!(%error, "a role ended"),
            }
        }
    }
}

/// The API server of a kubeconfig, for roles that run without their own.
async fn remote(path: &Path) -> Result<(String, kube::Client)> {
    let context = || format!("without the role apiserver, {} must name a server", path.display());
    let file = Kubeconfig::read_from(path).with_context(context)?;
    let config =
        kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.with_context(context)?;
    let url = config.cluster_url.to_string().trim_end_matches('/').to_owned();
    Ok((url, kube::Client::try_from(config).with_context(context)?))
}
