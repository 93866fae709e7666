//! `muster up`: the server in the foreground.

use crate::cli::UpArgs;
use crate::exit::ExitStatus;
use crate::logging;
use crate::roles::Server;
use crate::settings::ServerSettings;
use crate::signals::Signals;
use anyhow::{Context, Result};
use std::io::Write;
use std::time::Duration;
use tokio::time::Instant;

pub(crate) fn run(args: &UpArgs) -> Result<ExitStatus> {
    let settings = ServerSettings::resolve(args)?;
    if args.dump_config {
        print!("{}", settings.to_toml());
        return Ok(ExitStatus::Success);
    }
    logging::init(&settings.log_level, settings.log_format, None)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("failed to start the runtime")?;
    let status = runtime.block_on(serve(settings));
    // Whatever still blocks has nothing to say any more.
    runtime.shutdown_timeout(Duration::from_secs(1));
    status
}

async fn serve(settings: ServerSettings) -> Result<ExitStatus> {
    let started = Instant::now();
    let mut signals = Signals::new()?;
    let mut server = tokio::select! {
        biased;
        () = signals.received() => return Ok(ExitStatus::Interrupted),
        server = Server::start(settings) => server?,
    };
    // Scripts wait for this line; nothing else goes to standard output.
    println!(
        "muster is ready on {} after {} ms; KUBECONFIG={}",
        server.url(),
        started.elapsed().as_millis(),
        server.kubeconfig().display()
    );
    let _ = std::io::stdout().flush();
    let failure = tokio::select! {
        biased;
        () = signals.received() => None,
        failure = server.failure() => Some(failure),
    };
    tracing::info!("draining; a second signal ends at once");
    let ended_early = tokio::select! {
        biased;
        () = signals.received() => true,
        () = server.drain() => false,
    };
    if ended_early {
        server.kill().await;
    }
    match failure {
        Some(failure) => Err(failure),
        None if ended_early => Ok(ExitStatus::Interrupted),
        None => Ok(ExitStatus::Success),
    }
}
