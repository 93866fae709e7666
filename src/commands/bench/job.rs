//! The bench as a job: its ranks are the pods of a gang. The first pod tells the others what to do, over connections
//! to the address that a training framework would meet at, and its log is the report.

use std::io::{BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use muster_api::random::Random;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;

use super::contestant::{Contestant, Interrupted, Link};
use super::processors;
use super::rank::{self, Seat};
use crate::cli::{BenchArgs, RunArgs};
use crate::commands::run;
use crate::env;
use crate::exit::ExitStatus;
use crate::output::Lines;

/// How long pods of a gang wait for each other.
const GATHERING: Duration = Duration::from_secs(120);
/// The longest first line of a rank.
const GREETING: u64 = 200;

/// Submits the job and shows its report.
pub(super) fn submit(args: &BenchArgs) -> Result<ExitStatus> {
    let program = std::env::current_exe().context("failed to find this program")?;
    let program = program.to_str().context("the path of this program is not text")?.to_owned();
    let random = Random::system();
    let workers = args.workers.unwrap_or(args.ranks);
    let job = RunArgs {
        file: None,
        workers,
        gpus_per_worker: 0,
        name: Some(format!("bench-{}-{}", args.operation.name().replace('_', "-"), random.suffix(5))),
        image: "host".to_owned(),
        env: vec![(env::MUSTER_BENCH_SECRET.to_owned(), random.uuid())],
        rm: false,
        images: None,
        target: args.target.clone(),
        command: std::iter::once(program).chain(words(args, workers)).collect(),
    };
    run::show(&job, &Lines::bare())
}

/// The same bench, for a pod to take part in.
fn words(args: &BenchArgs, workers: u32) -> Vec<String> {
    let sizes: Vec<String> = args.sizes.0.iter().map(usize::to_string).collect();
    let mut words = vec!["bench".to_owned(), args.operation.name().to_owned(), "--gang".to_owned()];
    let mut flag = |name: &str, value: String| words.push(format!("--{name}={value}"));
    flag("ranks", workers.to_string());
    flag("sizes", sizes.join(","));
    flag("dtype", args.dtype.to_string());
    flag("op", args.op.to_string());
    flag("transport", args.transport.name().to_owned());
    flag("rounds", args.rounds.to_string());
    match args.iterations {
        Some(iterations) => flag("iterations", iterations.to_string()),
        None => flag("seconds", args.seconds.to_string()),
    }
    if let Some(buffer) = args.buffer {
        flag("buffer", buffer.name().to_owned());
    }
    for (name, file) in [("svg", &args.svg), ("raw", &args.raw)] {
        if let Some(file) = file {
            flag(name, file.display().to_string());
        }
    }
    words.extend(args.json.then(|| "--json".to_owned()));
    words.extend(args.strict.then(|| "--strict".to_owned()));
    words
}

/// In a pod: does what the first pod says. In the first pod: `measure`s, with itself as one of the ranks.
pub(super) fn take_part(
    ranks: usize,
    bound: &[usize],
    seat: impl Fn(usize) -> Seat,
    interrupt: &SignalFd,
    measure: impl FnOnce(Contestant<'_>) -> Result<ExitStatus>,
) -> Result<ExitStatus> {
    let variable = |name: &str| env::text(name).with_context(|| format!("{name} is not set: start this with --job"));
    let rank: usize = variable(env::RANK)?.parse().context("RANK is not a number")?;
    let (host, port) = (variable(env::MASTER_ADDR)?, variable(env::MASTER_PORT)?);
    let meeting = (host.as_str(), port.parse::<u16>().context("MASTER_PORT is not a port")?);
    let secret = variable(env::MUSTER_BENCH_SECRET)?;
    let core = bound.get(rank).copied();
    let seat = seat(rank);
    if rank != 0 {
        return serve(&seat, core, connect(meeting)?, &secret).map(|()| ExitStatus::Success);
    }
    let listener = TcpListener::bind(meeting).with_context(|| format!("failed to listen at {host}:{port}"))?;
    let own = TcpStream::connect(listener.local_addr()?).context("failed to connect to itself")?;
    let waiting = own.try_clone()?;
    std::thread::scope(|scope| {
        let served = scope.spawn(|| serve(&seat, core, own, &secret));
        // The end of the measurement ends what the ranks are waiting for, its own among them.
        let links = gather(&listener, ranks, &secret, interrupt);
        let status = links.and_then(|links| Contestant::join(links, interrupt)).and_then(measure);
        // Where it was never gathered, too.
        let _ = waiting.shutdown(Shutdown::Both);
        let served = served.join().map_err(|_| anyhow!("the rank of this process ended"))?;
        status.and_then(|status| served.map(|()| status))
    })
}

fn serve(seat: &Seat, core: Option<usize>, stream: TcpStream, secret: &str) -> Result<()> {
    if let Some(core) = core {
        // The threads of the communicator begin with it.
        processors::bind(core)?;
    }
    stream.set_nodelay(true)?;
    let mut answers = stream.try_clone()?;
    writeln!(answers, "rank {} {secret}", seat.rank)?;
    rank::serve(seat, BufReader::new(stream), &mut answers)
}

/// The first pod may start after this one.
fn connect(meeting: (&str, u16)) -> Result<TcpStream> {
    let deadline = Instant::now() + GATHERING;
    loop {
        let last = match meeting.to_socket_addrs().map(|mut addresses| addresses.next()) {
            Ok(Some(address)) => match TcpStream::connect(address) {
                Ok(stream) => return Ok(stream),
                Err(error) => error,
            },
            Ok(None) => ErrorKind::NotFound.into(),
            Err(error) => error,
        };
        if Instant::now() > deadline {
            return Err(last).with_context(|| format!("failed to reach the first pod at {}:{}", meeting.0, meeting.1));
        }
        let _ = poll(&mut [], PollTimeout::from(20_u8));
    }
}

/// A connection from each rank, by rank. Whoever does not know the secret is sent away.
fn gather(listener: &TcpListener, ranks: usize, secret: &str, interrupt: &SignalFd) -> Result<Vec<Link>> {
    let deadline = Instant::now() + GATHERING;
    let mut links: Vec<Option<Link>> = (0..ranks).map(|_| None).collect();
    while links.iter().any(Option::is_none) {
        let Some(left) = deadline.checked_duration_since(Instant::now()) else {
            bail!("the pods of some ranks did not come in {} s", GATHERING.as_secs());
        };
        let mut events =
            [PollFd::new(interrupt.as_fd(), PollFlags::POLLIN), PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        poll(&mut events, PollTimeout::from(left.min(Duration::from_secs(1)).as_millis() as u16))?;
        if events[0].any().unwrap_or(false) {
            bail!(Interrupted);
        }
        if events[1].any().unwrap_or(false) {
            let (stream, _) = listener.accept().context("failed to accept a rank")?;
            if let Some(rank) = greeting(&stream, secret).filter(|rank| links.get(*rank).is_some_and(Option::is_none)) {
                links[rank] = Some(Link::over(stream)?);
            }
        }
    }
    Ok(links.into_iter().flatten().collect())
}

/// The rank that a connection says it is, with the secret. Nothing follows the line before an answer to it.
fn greeting(stream: &TcpStream, secret: &str) -> Option<usize> {
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    let mut line = String::new();
    let mut byte = [0];
    let mut stream = stream.take(GREETING);
    while stream.read(&mut byte).ok()? == 1 && byte != *b"\n" {
        line.push(char::from(byte[0]));
    }
    let (rank, told) = line.strip_prefix("rank ")?.split_once(' ')?;
    // As long as the secret is, so that how long a comparison takes says nothing.
    let same = told.len() == secret.len() && told.bytes().zip(secret.bytes()).fold(0, |all, (a, b)| all | (a ^ b)) == 0;
    same.then(|| rank.parse().ok())?
}
