//! `muster bench`: how long collective operations take, checked while they are timed, beside other libraries and the
//! memory's own speed.
//!
//! ```text
//! plan       which cases there are, and how long each one's turn is
//! contestant the ranks of a library, as processes
//!   command  what they are told and what they answer
//!   rank     a rank of Muster; `job`: where ranks are pods
//!     data   what the ranks give each other, and what is wrong with what they get
//! calibration what the memory can do
//! report     JSON and the table; `chart` draws; `reference` says when a run is void
//! ```

mod calibration;
mod chart;
mod command;
mod contestant;
mod data;
mod job;
mod machine;
mod operation;
mod plan;
mod processors;
pub(crate) mod rank;
mod reference;
mod report;
mod sizes;
mod statistics;

pub(crate) use operation::{parse_dtype, parse_op};
pub(crate) use sizes::Sizes;

use std::fs::DirBuilder;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use muster_collectives::{DType, ReduceOp};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::cli::{BenchArgs, Operation, TransportChoice};
use crate::exit::ExitStatus;
use crate::output::Lines;
use contestant::{Contestant, Interrupted, Library, Setting};
use machine::Machine;
use rank::Seat;
use report::Report;

pub(crate) fn run(args: &BenchArgs) -> Result<ExitStatus> {
    let libraries = libraries(args)?;
    let sizes = sizes(args)?;
    if args.job {
        return job::submit(args);
    }
    let cores = processors::allowed()?;
    let ranks = args.ranks as usize;
    let bound = if ranks <= cores.len() { &cores[..ranks] } else { &[] };
    let bytes = sizes.iter().copied().max().unwrap_or(0);
    let interrupt = interrupt()?;
    let run = Planned { args, sizes: &sizes, cores: &cores, bound };
    if args.gang {
        let seat = |rank| Seat { rank, transport: args.transport, bytes };
        return job::take_part(args.ranks as usize, bound, seat, &interrupt, |contestant| {
            run.measure(|| Ok(vec![contestant]))
        });
    }
    let folder = Scratch::new()?;
    let setting =
        Setting { folder: &folder.0, ranks, cores: bound, transport: args.transport, bytes, interrupt: &interrupt };
    run.measure(|| libraries.iter().map(|library| Contestant::start(*library, &setting)).collect())
}

/// From here on Ctrl-C is read where answers are waited for. Processes that are started begin with a mask of their own.
fn interrupt() -> Result<SignalFd> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block().context("failed to block signals")?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC).context("failed to listen for signals")
}

/// A run whose ranks are yet to start.
struct Planned<'a> {
    args: &'a BenchArgs,
    sizes: &'a [usize],
    cores: &'a [usize],
    /// The cores that ranks are bound to.
    bound: &'a [usize],
}

impl Planned<'_> {
    fn measure<'c>(&self, start: impl FnOnce() -> Result<Vec<Contestant<'c>>>) -> Result<ExitStatus> {
        let Planned { args, sizes, cores, bound } = *self;
        let lines = Lines::new();
        let machine = Machine::look();
        lines.status("starting the ranks");
        let measured = start().and_then(|mut contestants| {
            let results = plan::Plan { args, sizes, cores }.carry_out(&mut contestants, &lines)?;
            let about = contestants.iter().map(|one| (one.library, one.about.clone(), one.command.clone()));
            Ok((results, about.collect()))
        });
        lines.clear_status();
        let (results, libraries) = match measured {
            Ok(measured) => measured,
            Err(error) if error.is::<Interrupted>() => return Ok(ExitStatus::Interrupted),
            Err(error) => return Err(error),
        };
        tell(&Report { args, machine, load_after: Machine::look().load, bound, libraries, results })
    }
}

/// Prints the report, writes its files, and says what is wrong with it.
fn tell(report: &Report<'_>) -> Result<ExitStatus> {
    let args = report.args;
    let text = if args.json { report.json()? } else { report.table() };
    if args.json && report.libraries.len() > 1 {
        eprint!("{}", report.head());
    }
    // A reader that went away (`| head`) is no reason to fail.
    let _ = std::io::stdout().write_all(text.as_bytes());
    if let Some(file) = &args.svg {
        write(file, &chart::draw(report))?;
    }
    if let Some(file) = &args.raw {
        write(file, &report.raw()?)?;
    }
    let (void, wrong) = (report.void(), report.wrong());
    void.iter().for_each(|reason| eprintln!("void: {reason}"));
    if wrong > 0 {
        eprintln!("error: {wrong} elements of results were wrong");
    }
    let failed = args.strict && (wrong > 0 || !void.is_empty());
    Ok(if failed { ExitStatus::Failure } else { ExitStatus::Success })
}

fn write(file: &Path, text: &str) -> Result<()> {
    std::fs::write(file, text).with_context(|| format!("failed to write {}", file.display()))
}

/// Muster and those it is compared with; what one of them cannot do is said before anything starts.
fn libraries(args: &BenchArgs) -> Result<Vec<Library>> {
    let mut libraries = vec![Library::Muster];
    for rival in &args.compare {
        let library = Library::from(*rival);
        if !libraries.contains(&library) {
            libraries.push(library);
        }
    }
    let half = matches!(args.dtype, DType::F16 | DType::BF16 | DType::I16);
    if libraries.len() > 1 && half {
        bail!("{} is measured for muster alone: leave --compare out", args.dtype);
    }
    if libraries.len() > 1 && args.operation.reduces() && args.op == ReduceOp::Mean {
        bail!("the rivals have no mean: compare with --op sum");
    }
    if args.ranks == 1 && args.transport == TransportChoice::Tcp {
        bail!("one rank has nobody to reach over TCP");
    }
    Ok(libraries)
}

/// The sizes that the operation can have.
fn sizes(args: &BenchArgs) -> Result<Vec<usize>> {
    if args.operation == Operation::Barrier {
        return Ok(vec![0]);
    }
    let fitting = |size: &usize| args.operation.fitting(*size, args.dtype.size(), args.ranks as usize);
    let mut sizes: Vec<usize> = args.sizes.0.iter().map(fitting).collect();
    sizes.dedup();
    match sizes.first() {
        Some(0) => bail!("{} bytes are less than an element of {} for each rank", args.sizes.0[0], args.dtype),
        Some(_) => Ok(sizes),
        None => bail!("no sizes"),
    }
}

/// A folder for the pipes, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Scratch> {
        let name = format!("muster-bench-{}", muster_api::random::Random::system().suffix(10));
        let path = std::env::temp_dir().join(name);
        DirBuilder::new().mode(0o700).create(&path).with_context(|| format!("failed to create {}", path.display()))?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
