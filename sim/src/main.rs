//! `muster-sim fuzz` runs the worlds of many seeds, `muster-sim trace` shows that of one.

use std::io::Write;
use std::ops::Range;
use std::time::Instant;

use anyhow::Context;
use clap::{Parser, Subcommand};
use muster_sim::{fuzz, invariants, world};

/// How much of a trace is shown with a failure.
const LAST_LINES: usize = 40;

#[derive(Parser)]
#[command(name = "muster-sim", about = "Runs simulated worlds of Muster")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the worlds of a range of seeds until one breaks an invariant
    Fuzz {
        /// The seeds, as FROM..TO (without TO)
        #[arg(long, value_parser = seeds)]
        seeds: Range<u64>,
        /// Worlds that run at a time
        #[arg(long, default_value_t = std::thread::available_parallelism().map_or(1, usize::from))]
        threads: usize,
        /// A bug to plant before, in builds with the feature `planted`
        #[arg(long)]
        plant: Option<String>,
    },
    /// Prints everything that happens in the world of a seed
    Trace {
        #[arg(long)]
        seed: u64,
        /// A bug to plant before, in builds with the feature `planted`
        #[arg(long)]
        plant: Option<String>,
    },
}

fn seeds(text: &str) -> Result<Range<u64>, String> {
    let (from, to) = text.split_once("..").ok_or("not of the form FROM..TO")?;
    let parse = |text: &str| text.parse::<u64>().map_err(|error| error.to_string());
    Ok(parse(from)?..parse(to)?)
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Fuzz { seeds, threads, plant: bug } => {
            plant(bug.as_deref())?;
            fuzz(seeds, threads, bug.as_deref())
        }
        Command::Trace { seed, plant: bug } => {
            plant(bug.as_deref())?;
            let outcome = world::run(seed);
            std::io::stdout().write_all(outcome.trace.as_bytes()).context("failed to write the trace")?;
            if let Some(violation) = outcome.violation {
                eprintln!("seed {seed} breaks {violation}");
                std::process::exit(1)
            }
            Ok(())
        }
    }
}

fn fuzz(seeds: Range<u64>, threads: usize, planted: Option<&str>) -> anyhow::Result<()> {
    let start = Instant::now();
    let report = fuzz::run(seeds, threads);
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{} worlds, {} transactions, {:.1} simulated hours in {seconds:.1} s ({:.0} worlds/s)",
        report.worlds,
        report.transactions,
        report.lasted.as_secs_f64() / 3600.0,
        report.worlds as f64 / seconds
    );
    println!("invariants: {}", invariants::NAMES.join(", "));
    let Some((seed, outcome)) = report.broken else { return Ok(()) };
    let lines: Vec<&str> = outcome.trace.lines().collect();
    println!("the last of the {} lines of the trace of seed {seed}:", lines.len());
    for line in &lines[lines.len().saturating_sub(LAST_LINES)..] {
        println!("{line}");
    }
    let violation = outcome.violation.map(|violation| violation.to_string()).unwrap_or_default();
    let (features, plant) = match planted {
        None => ("", String::new()),
        Some(bug) => (" --features muster-sim/planted", format!(" --plant {bug}")),
    };
    eprintln!("seed {seed} breaks {violation}");
    eprintln!("the whole trace: cargo run --release --bin muster-sim{features} -- trace --seed {seed}{plant}");
    std::process::exit(1)
}

#[cfg(feature = "planted")]
fn plant(bug: Option<&str>) -> anyhow::Result<()> {
    let Some(bug) = bug else { return Ok(()) };
    if !muster_sim::planted::plant(bug) {
        let names: Vec<&str> = muster_sim::planted::names().map(|(name, _)| name).collect();
        anyhow::bail!("no bug is called {bug}: there are {}", names.join(", "));
    }
    Ok(())
}

#[cfg(not(feature = "planted"))]
fn plant(bug: Option<&str>) -> anyhow::Result<()> {
    anyhow::ensure!(bug.is_none(), "bugs can be planted in builds with the feature `planted` only");
    Ok(())
}
