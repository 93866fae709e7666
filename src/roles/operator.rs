//! The training operator's role, and beside it the rendezvous of the jobs' workers.

use super::apiserver::bind;
use crate::cli::{Addressing, Role};
use crate::data_folder::{DataFolder, Ports};
use crate::pki;
use crate::settings::ServerSettings;
use anyhow::{Context, Result};
use muster_operator::training;
use muster_rendezvous::{TokenKey, quorum, server};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// The name by which pods ask for our gang scheduler.
const GANG_SCHEDULER: &str = "muster";

/// Bound and configured, not yet running.
pub(super) struct Prepared {
    config: training::Config,
    listener: TcpListener,
    key: TokenKey,
}

/// Binds the rendezvous, on the port of the last time where that is free: workers of running jobs know it.
pub(super) async fn prepare(settings: &ServerSettings, folder: &DataFolder, ports: &mut Ports) -> Result<Prepared> {
    let key = pki::rendezvous_key(folder)?;
    let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let listener = bind(any_port, ports.rendezvous).context("failed to bind the rendezvous")?;
    let address = listener.local_addr()?;
    ports.rendezvous = address.port();
    let signer = key.clone();
    let config = training::Config {
        addressing: match settings.addressing {
            Addressing::HostPorts => training::Addressing::HostPorts,
            Addressing::Dns => training::Addressing::Dns,
        },
        gang_scheduler: settings.has(Role::Scheduler).then(|| GANG_SCHEDULER.to_owned()),
        rendezvous: Some(training::Rendezvous {
            address: address.to_string(),
            job_token: Arc::new(move |namespace, job, uid| signer.job_token(namespace, job, uid)),
        }),
        ..training::Config::default()
    };
    Ok(Prepared { config, listener, key })
}

impl Prepared {
    /// The operator's counters, as Prometheus reads them.
    pub(super) fn metrics(&self) -> training::Metrics {
        self.config.metrics.clone()
    }

    pub(super) async fn run(
        self,
        client: kube::Client,
        ready: oneshot::Sender<()>,
        stop: CancellationToken,
    ) -> Result<()> {
        let Prepared { config, listener, key } = self;
        let rendezvous = server::serve(listener, key, quorum::Config::default(), stop.clone());
        let operator = training::run(client, config, ready, stop);
        tokio::try_join!(async { Ok(rendezvous.await?) }, async { Ok(operator.await?) }).map(|((), ())| ())
    }
}
