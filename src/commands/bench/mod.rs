//! `muster bench`: how long collective operations take, checked while they are timed, beside other libraries and the
//! memory's own speed.
//!
//! ```text
//! plan       which cases there are, and how long each one's turn is
//! contestant the ranks of a library, as processes
//!   command  what they are told and what they answer
//!   rank     a rank of Muster
//!     data   what the ranks give each other, and what is wrong with what they get
//! calibration what the memory can do
//! report     JSON and the table; `chart` draws; `reference` says when a run is void
//! ```

mod calibration;
mod chart;
mod command;
mod contestant;
mod data;
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
use report::Report;

pub(crate) fn run(args: &BenchArgs) -> Result<ExitStatus> {
    let libraries = libraries(args)?;
    let cores = processors::allowed()?;
    let ranks = args.ranks as usize;
    let bound = if ranks <= cores.len() { &cores[..ranks] } else { &[] };
    let sizes = sizes(args)?;

    // From here on Ctrl-C is read where answers are waited for. Ranks begin with a mask of their own.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block().context("failed to block signals")?;
    let interrupt = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC).context("failed to listen for signals")?;

    let folder = Scratch::new()?;
    let setting = Setting {
        folder: &folder.0,
        ranks,
        cores: bound,
        transport: args.transport,
        bytes: sizes.iter().copied().max().unwrap_or(0),
        interrupt: &interrupt,
    };
    let lines = Lines::new();
    let machine = Machine::look();
    let start = |library: &Library| {
        lines.status(&format!("starting {}", library.name()));
        Contestant::start(*library, &setting)
    };
    let measured = libraries.iter().map(start).collect::<Result<Vec<_>>>().and_then(|mut contestants| {
        let plan = plan::Plan { args, sizes: &sizes, cores: &cores };
        let results = plan.carry_out(&mut contestants, &lines)?;
        let about = contestants.iter().map(|one| (one.library, one.about.clone(), one.command.clone())).collect();
        Ok((results, about))
    });
    lines.clear_status();
    let (results, libraries) = match measured {
        Ok(measured) => measured,
        Err(error) if error.is::<Interrupted>() => return Ok(ExitStatus::Interrupted),
        Err(error) => return Err(error),
    };
    let report = Report { args, machine, load_after: Machine::look().load, bound, libraries, results };
    tell(&report)
}

/// Prints the report, writes its files, and says what is wrong with it.
fn tell(report: &Report<'_>) -> Result<ExitStatus> {
    let args = report.args;
    let text = if args.json { report.json()? } else { report.table() };
    // A reader that went away (`| head`) is no reason to fail.
    let _ = std::io::stdout().write_all(text.as_bytes());
    if let Some(file) = &args.svg {
        write(file, &chart::draw(report))?;
    }
    if let Some(file) = &args.raw {
        write(file, &report.raw()?)?;
    }
    let (void, wrong) = (report.void(), report.wrong());
    for reason in &void {
        eprintln!("void: {reason}");
    }
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
