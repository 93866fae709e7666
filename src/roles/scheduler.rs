//! The gang scheduler's role.

use anyhow::Result;
use muster_api::clock::Clock;
use muster_launcher::gang;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

pub(super) async fn run(client: kube::Client, ready: oneshot::Sender<()>, stop: CancellationToken) -> Result<()> {
    Ok(gang::run(client, gang::Config::new(Clock::system()), ready, stop).await?)
}
