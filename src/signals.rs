//! Ctrl-C and SIGTERM, as something to wait for.

use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    count: u32,
}

impl Signals {
    /// From here on, the signals no longer end the process by themselves.
    pub(crate) fn new() -> Result<Signals> {
        let listen = |kind| signal(kind).context("failed to listen for signals");
        Ok(Signals {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            count: 0,
        })
    }

    /// Ends with the next of either.
    pub(crate) async fn received(&mut self) {
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
        self.count += 1;
    }

    /// How many have been received so far.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }
}
