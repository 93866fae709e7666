//! The controllers' role: namespaces, garbage collection, service accounts, quotas.

use crate::cli::Role;
use crate::settings::ServerSettings;
use anyhow::{Context, Result};
use muster_operator::cluster;
use std::path::Path;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// `ca` is the file with the certificate of the cluster's authority, which pods are given. What is only there for
/// another role is left out where that role is: certificates for pods without a node, taints without a scheduler.
pub(super) fn config(settings: &ServerSettings, ca: &Path) -> Result<cluster::Config> {
    let root_ca = match std::fs::read_to_string(ca) {
        Ok(certificate) => Some(certificate),
        // Controllers of another server have no authority to pass on.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("failed to read {}", ca.display())),
    };
    Ok(cluster::Config {
        root_ca: root_ca.filter(|_| settings.has(Role::Node)),
        node_taints: settings.has(Role::Scheduler),
        ..cluster::Config::default()
    })
}

pub(super) async fn run(
    client: kube::Client,
    config: cluster::Config,
    ready: oneshot::Sender<()>,
    stop: CancellationToken,
) -> Result<()> {
    Ok(cluster::run(client, config, ready, stop).await?)
}
