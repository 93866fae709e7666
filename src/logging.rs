//! What the server logs goes to standard error (or a file), as text or JSON lines.

use crate::cli::LogFormat;
use anyhow::{Context, Result, bail};
use std::io::IsTerminal;
use std::path::Path;
use std::sync::Mutex;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, util::SubscriberInitExt};

/// Installs the log of this process. `directives` is a level or a list of directives.
pub(crate) fn init(directives: &str, format: LogFormat, file: Option<&Path>) -> Result<()> {
    let filter = filter(directives)?;
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

/// A level, or directives as `info,muster_operator=debug`.
fn filter(directives: &str) -> Result<EnvFilter> {
    let expected =
        || format!("--log-level {directives:?}: expected error, warn, info, debug, trace, off or directives");
    // A word alone would be the name of a part of this program, and all others be silent.
    let is_level = |part: &str| !part.is_empty() && part.parse::<LevelFilter>().is_ok();
    let whole = |part: &str| part.contains(['=', '[']) || is_level(part);
    if !directives.split(',').all(whole) {
        bail!(expected());
    }
    // It logs each request that fails, which its callers know to repeat or to tell.
    EnvFilter::try_new(format!("kube_client::client::builder=off,{directives}")).with_context(expected)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_no_level_is_refused() {
        for good in ["info", "WARN", "off", "debug,kube=warn", "muster_operator=debug"] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for bad in ["", "verbose", "info,loud", "kube=loud"] {
            let error = filter(bad).map(drop).unwrap_err();
            assert!(error.to_string().contains("expected error, warn, info"), "{bad}: {error}");
        }
    }
}
