//! The API server's role: the store in the data folder, HTTPS on the loopback, the kubeconfig.

use crate::cli::Role;
use crate::data_folder::{DataFolder, Ports};
use crate::kubeconfig;
use crate::pki::Pki;
use crate::settings::ServerSettings;
use anyhow::{Context, Result};
use muster_api::clock::Clock;
use muster_api::random::Random;
use muster_apiserver::auth::Identity;
use muster_apiserver::{ApiServer, Backend, NodeService, Options, Readiness};
use muster_operator::training::Metrics;
use muster_rendezvous::server;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(super) struct Running {
    pub(super) url: String,
    pub(super) address: SocketAddr,
    server: ApiServer,
    stop: CancellationToken,
    listening: JoinHandle<()>,
}

pub(super) async fn start(
    settings: &ServerSettings,
    folder: &DataFolder,
    readiness: Readiness,
    nodes: Option<NodeService>,
    metrics: Option<Metrics>,
    ports: &mut Ports,
) -> Result<Running> {
    let listener = bind(settings.listen, ports.apiserver).with_context(|| format!("--listen {}", settings.listen))?;
    let address = listener.local_addr()?;
    ports.apiserver = address.port();
    let pki = Pki::load(folder, address.ip())?;
    let server = ApiServer::open(Options {
        backend: Backend::Sqlite(folder.file("store.db")),
        clock: Clock::system(),
        random: Random::system(),
        keys: pki.keys(),
        nodes,
        crds: muster_api::crds(),
        readiness,
        pod_admission: settings.has(Role::Controllers),
        metrics: metrics.map(|metrics| Arc::new(move || metrics.render()) as _),
    })
    .await
    .with_context(|| format!("failed to open the store in {}", folder.path().display()))?;
    let url = format!("https://{address}");
    kubeconfig::write(&settings.kubeconfig, &url, &pki.ca_certificate, &pki.token)?;
    let stop = CancellationToken::new();
    let listening = tokio::spawn({
        let (server, tls, stop) = (server.clone(), pki.server_config()?, stop.clone());
        async move { server.serve(listener, tls, stop).await }
    });
    tracing::info!(%url, "serving");
    Ok(Running { url, address, server, stop, listening })
}

impl Running {
    /// A client in this process, with an identity of its own.
    pub(super) fn client(&self, component: &str) -> kube::Client {
        kube::Client::new(self.server.service(Identity::component(component)).brief(), "default")
    }

    pub(super) async fn end(self) {
        self.stop.cancel();
        let _ = self.listening.await;
        self.server.close().await;
    }
}

/// Port 0 takes the port of the last time, so that kubeconfigs stay true, and where that is taken a free one.
pub(super) fn bind(address: SocketAddr, last: u16) -> std::io::Result<TcpListener> {
    if address.port() == 0
        && last != 0
        && let Ok(listener) = server::bind(SocketAddr::new(address.ip(), last))
    {
        return Ok(listener);
    }
    server::bind(address)
}
