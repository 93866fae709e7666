//! `muster-sim fuzz` runs the worlds of many seeds, `muster-sim trace` shows that of one.

use std::io::Write;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use muster_sim::world::{self, Outcome};

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
        /// A bug to plant before
        #[cfg(feature = "planted")]
        #[arg(long)]
        plant: Option<String>,
    },
    /// Prints everything that happens in the world of a seed
    Trace {
        #[arg(long)]
        seed: u64,
    },
}

fn seeds(text: &str) -> Result<Range<u64>, String> {
    let (from, to) = text.split_once("..").ok_or("not of the form FROM..TO")?;
    let parse = |text: &str| text.parse::<u64>().map_err(|error| error.to_string());
    Ok(parse(from)?..parse(to)?)
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        #[cfg(not(feature = "planted"))]
        Command::Fuzz { seeds, threads } => fuzz(seeds, threads),
        #[cfg(feature = "planted")]
        Command::Fuzz { seeds, threads, plant } => {
            if let Some(bug) = plant
                && !muster_sim::planted::plant(&bug)
            {
                let names: Vec<&str> = muster_sim::planted::names().map(|(name, _)| name).collect();
                bail!("no bug is called {bug}: there are {}", names.join(", "));
            }
            fuzz(seeds, threads)
        }
        Command::Trace { seed } => {
            let outcome = world::run(seed);
            std::io::stdout().write_all(outcome.trace.as_bytes()).context("failed to write the trace")?;
            match outcome.violation {
                None => Ok(()),
                Some(violation) => bail!("seed {seed} breaks {violation}"),
            }
        }
    }
}

fn fuzz(seeds: Range<u64>, threads: usize) -> anyhow::Result<()> {
    let start = Instant::now();
    let (next, stop) = (AtomicU64::new(seeds.start), AtomicBool::new(false));
    let totals = Mutex::new((0u64, 0u64, Duration::ZERO));
    let broken: Mutex<Option<(u64, Outcome)>> = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let outcome = world::run(seed);
                    let mut totals = totals.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                    totals.0 += 1;
                    totals.1 += outcome.transactions;
                    totals.2 += outcome.lasted;
                    if outcome.violation.is_some() {
                        stop.store(true, Ordering::Relaxed);
                        let mut broken = broken.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                        // The lowest seed, whichever thread came first.
                        if broken.as_ref().is_none_or(|(other, _)| seed < *other) {
                            *broken = Some((seed, outcome));
                        }
                    }
                }
            });
        }
    });
    let (worlds, transactions, lasted) = totals.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    println!(
        "{worlds} worlds, {transactions} transactions, {:.1} simulated hours in {:.1} s",
        lasted.as_secs_f64() / 3600.0,
        start.elapsed().as_secs_f64()
    );
    match broken.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
        None => Ok(()),
        Some((seed, outcome)) => {
            let violation = outcome.violation.map(|violation| violation.to_string()).unwrap_or_default();
            let lines: Vec<&str> = outcome.trace.lines().collect();
            for line in &lines[lines.len().saturating_sub(40)..] {
                println!("{line}");
            }
            bail!("seed {seed} breaks {violation}\nreproduce: cargo run --release -p muster-sim -- trace --seed {seed}")
        }
    }
}
