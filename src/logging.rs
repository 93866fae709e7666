//! What the server logs goes to standard error (or a file), as text or JSON lines.

use crate::cli::LogFormat;
use anyhow::{Context, Result};
use std::io::IsTerminal;
use std::path::Path;
use std::sync::Mutex;
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, util::SubscriberInitExt};

/// Installs the log of this process. `directives` is a level or a list of directives.
pub(crate) fn init(directives: &str, format: LogFormat, file: Option<&Path>) -> Result<()> {
    let filter = EnvFilter::try_new(directives).with_context(|| {
        format!("--log-level {directives:?}: expected error, warn, info, debug, trace or directives")
    })?;
    let layer = match file {
        Some(path) => {
            let file = std::fs::File::create(path).with_context(|| format!("failed to create {}", path.display()))?;
            formatted(format, false, Mutex::new(file))
        }
        None => formatted(format, std::io::stderr().is_terminal(), std::io::stderr),
    };
    tracing_subscriber::registry().with(layer.with_filter(filter)).init();
    // A panic of any task is a bug that the log must show; the default hook would only print it.
    std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "a task panicked")));
    Ok(())
}

fn formatted<S, W>(format: LogFormat, colour: bool, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
    W: for<'a> tracing_subscriber::fmt::MakeWriter<'a> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_ansi(colour).with_writer(writer);
    match format {
        LogFormat::Text => layer.boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    }
}
