//! A library under measurement: its ranks as processes, each with a pipe for commands and one for answers.
//!
//! Named pipes, since mpirun starts the ranks of MPI. A rank whose pipe of commands closes ends by itself, so none
//! outlives the coordinator, however that ends.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::signalfd::SignalFd;
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};

use super::command::{PROTOCOL, Run, Times};
use crate::cli::{Rival, TransportChoice};
use crate::env;
use crate::settings;

/// How long a rank may take to start: a rival's libraries may have to come from a slow disk.
const START: Duration = Duration::from_secs(180);
/// How long a turn may take. A turn is planned for less than a second, or one iteration.
const TURN: Duration = Duration::from_secs(300);
/// How long ranks may take to end once their pipes are closed.
const END: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Library {
    Muster,
    Gloo,
    Mpi,
}

impl Library {
    pub(super) fn name(self) -> &'static str {
        match self {
            Library::Muster => "muster",
            Library::Gloo => "gloo",
            Library::Mpi => "mpi",
        }
    }
}

impl From<Rival> for Library {
    fn from(rival: Rival) -> Library {
        match rival {
            Rival::Gloo => Library::Gloo,
            Rival::Mpi => Library::Mpi,
        }
    }
}

/// What every contestant is started with.
pub(super) struct Setting<'a> {
    /// A folder of this run's own.
    pub(super) folder: &'a Path,
    pub(super) ranks: usize,
    /// One for each rank, or none where there are too few.
    pub(super) cores: &'a [usize],
    pub(super) transport: TransportChoice,
    /// The largest size that is to come.
    pub(super) bytes: usize,
    pub(super) interrupt: &'a SignalFd,
}

pub(super) struct Contestant<'a> {
    pub(super) library: Library,
    /// What it is and how it was set.
    pub(super) about: String,
    /// What started its ranks.
    pub(super) command: String,
    ranks: Vec<Link>,
    children: Vec<Child>,
    interrupt: &'a SignalFd,
}

/// The two ways to one rank and from it.
pub(super) struct Link {
    commands: File,
    answers: File,
    /// What has come of the next answer.
    begun: Vec<u8>,
    /// A connection has ended where nothing is left to read; a pipe, before its rank has opened it, has not.
    connected: bool,
}

impl Link {
    fn create(folder: &Path, name: &str) -> Result<Link> {
        let make = |end: &str| -> Result<PathBuf> {
            let path = folder.join(format!("{name}.{end}"));
            mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)
                .with_context(|| format!("failed to make {}", path.display()))?;
            Ok(path)
        };
        let (commands, answers) = (make("in")?, make("out")?);
        // To read as well: so it opens before the rank is there.
        let commands = File::options().read(true).write(true).open(commands)?;
        let answers = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(answers)?;
        Ok(Link { commands, answers, begun: Vec::new(), connected: false })
    }

    /// To a rank that is the pod of a job.
    pub(super) fn over(stream: TcpStream) -> Result<Link> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let answers = File::from(OwnedFd::from(stream));
        Ok(Link { commands: answers.try_clone()?, answers, begun: Vec::new(), connected: true })
    }

    fn say(&mut self, line: &str) -> Result<()> {
        self.commands.write_all(format!("{line}\n").as_bytes()).context("failed to write to a rank")
    }

    /// A whole line, if it has come.
    fn line(&mut self) -> Result<Option<String>> {
        let mut chunk = [0; 1 << 16];
        loop {
            if let Some(end) = self.begun.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.begun.drain(..=end).collect();
                return Ok(Some(String::from_utf8_lossy(&line).trim_end().to_owned()));
            }
            match self.answers.read(&mut chunk) {
                Ok(0) if self.connected => bail!("a rank has ended"),
                Ok(0) => return Ok(None),
                Ok(count) => self.begun.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("failed to read a rank's answer"),
            }
        }
    }
}

impl<'a> Contestant<'a> {
    /// Starts the ranks; returns once they have met.
    pub(super) fn start(library: Library, setting: &Setting<'a>) -> Result<Contestant<'a>> {
        let names = (0..setting.ranks).map(|rank| format!("{}-{rank}", library.name()));
        let ranks = names.map(|name| Link::create(setting.folder, &name)).collect::<Result<_>>()?;
        let commands = match library {
            Library::Muster => muster(setting)?,
            Library::Gloo => gloo(setting)?,
            Library::Mpi => vec![mpi(setting)?],
        };
        let shown = commands.first().map(show).unwrap_or_default();
        let (interrupt, about) = (setting.interrupt, String::new());
        let mut contestant = Contestant { library, about, command: shown, ranks, children: Vec::new(), interrupt };
        for mut command in commands {
            // A group of its own: Ctrl-C reaches the coordinator alone, which ends the ranks.
            command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
            let program = command.get_program().to_string_lossy().into_owned();
            contestant.children.push(command.spawn().with_context(|| format!("failed to start {program}"))?);
        }
        contestant.meet().with_context(|| format!("{} did not start", library.name()))?;
        Ok(contestant)
    }

    /// Muster, with ranks that were started elsewhere.
    pub(super) fn join(ranks: Vec<Link>, interrupt: &'a SignalFd) -> Result<Contestant<'a>> {
        let (library, about, command) = (Library::Muster, String::new(), "a pod for each rank".to_owned());
        let mut contestant = Contestant { library, about, command, ranks, children: Vec::new(), interrupt };
        contestant.meet()?;
        Ok(contestant)
    }

    fn meet(&mut self) -> Result<()> {
        if self.library == Library::Muster {
            let answers = self.answers(START)?;
            let addresses: Vec<&str> = answers.iter().filter_map(|line| line.strip_prefix("address ")).collect();
            if addresses.len() != self.ranks.len() {
                bail!("{}", answers.join("; "));
            }
            // It is only of this run.
            let secret = muster_api::random::Random::system().uuid();
            self.say(&format!("peers {secret} {}", addresses.join(" ")))?;
        }
        let answers = self.answers(START)?;
        for answer in &answers {
            let Some(about) = answer.strip_prefix("ready ") else { bail!("{answer}") };
            match about.split_once(' ') {
                Some((PROTOCOL, about)) => self.about = about.to_owned(),
                _ => bail!("it was built for another version of muster; run `make rivals`"),
            }
        }
        Ok(())
    }

    pub(super) fn run(&mut self, run: &Run) -> Result<Times> {
        let measured = self.say(&run.encode()).and_then(|()| {
            let times = self.answers(TURN)?.iter().map(|line| Times::decode(line)).collect::<Result<Vec<_>>>()?;
            if times.iter().any(|times| times.nanoseconds.len() != run.iterations) {
                bail!("a rank did not answer with {} times", run.iterations);
            }
            Ok(Times::slowest(&times))
        });
        measured.with_context(|| format!("{} failed at {} bytes", self.library.name(), run.size))
    }

    fn say(&mut self, line: &str) -> Result<()> {
        self.ranks.iter_mut().try_for_each(|rank| rank.say(line))
    }

    /// A line of each rank. Sleeps meanwhile: the processors are the ranks'.
    fn answers(&mut self, limit: Duration) -> Result<Vec<String>> {
        let deadline = Instant::now() + limit;
        let mut lines = vec![None; self.ranks.len()];
        loop {
            for (line, rank) in lines.iter_mut().zip(&mut self.ranks) {
                if line.is_none() {
                    *line = rank.line()?;
                }
            }
            // An error of one rank may be why the others do not answer.
            if let Some(error) = lines.iter().flatten().find_map(|line| line.strip_prefix("error ")) {
                bail!("{error}");
            }
            if lines.iter().all(Option::is_some) {
                return Ok(lines.into_iter().flatten().collect());
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                let silent: Vec<String> = silent(&lines).map(|rank| rank.to_string()).collect();
                bail!("no answer from rank {} in {} s", silent.join(", "), limit.as_secs());
            };
            self.wait(&lines, left)?;
        }
    }

    /// Until something comes, the interrupt included, or a rank is gone.
    fn wait(&mut self, lines: &[Option<String>], left: Duration) -> Result<()> {
        let waiting: Vec<usize> = silent(lines).collect();
        // Before its rank has opened it, a pipe cannot tell that the rank is gone: look at the processes now and then.
        let turn = left.min(Duration::from_secs(1)).as_millis() as u16;
        let mut descriptors = vec![PollFd::new(self.interrupt.as_fd(), PollFlags::POLLIN)];
        descriptors
            .extend(waiting.iter().map(|rank| PollFd::new(self.ranks[*rank].answers.as_fd(), PollFlags::POLLIN)));
        match poll(&mut descriptors, PollTimeout::from(turn.max(1))) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("failed to wait for the ranks"),
        }
        let happened = |descriptor: &PollFd<'_>, flag| descriptor.revents().is_some_and(|now| now.contains(flag));
        if happened(&descriptors[0], PollFlags::POLLIN) {
            bail!(Interrupted);
        }
        for (rank, descriptor) in waiting.iter().zip(&descriptors[1..]) {
            if happened(descriptor, PollFlags::POLLHUP) && !happened(descriptor, PollFlags::POLLIN) {
                bail!("rank {rank} has ended");
            }
        }
        for child in &mut self.children {
            if let Some(status) = child.try_wait()? {
                bail!("a process ended: {status}");
            }
        }
        Ok(())
    }
}

fn silent(lines: &[Option<String>]) -> impl Iterator<Item = usize> {
    lines.iter().enumerate().filter(|(_, line)| line.is_none()).map(|(rank, _)| rank)
}

/// Ctrl-C or SIGTERM came.
#[derive(Debug)]
pub(super) struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

impl Drop for Contestant<'_> {
    fn drop(&mut self) {
        // The ranks end when their pipes close.
        self.ranks.clear();
        let deadline = Instant::now() + END;
        for child in &mut self.children {
            while matches!(child.try_wait(), Ok(None)) {
                if Instant::now() >= deadline {
                    let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
                    let _ = child.wait();
                    break;
                }
                let _ = poll(&mut [], PollTimeout::from(10_u8));
            }
        }
    }
}

fn muster(setting: &Setting<'_>) -> Result<Vec<Command>> {
    let program = std::env::current_exe().context("failed to find this program")?;
    let ranks = (0..setting.ranks).map(|rank| {
        let mut command = program_of(&program);
        command.arg("bench-rank").arg("--folder").arg(setting.folder);
        command.args(["--rank", &rank.to_string(), "--bytes", &setting.bytes.to_string()]);
        command.args(["--transport", setting.transport.name()]);
        if let Some(core) = setting.cores.get(rank) {
            command.args(["--core", &core.to_string()]);
        }
        command
    });
    Ok(ranks.collect())
}

fn gloo(setting: &Setting<'_>) -> Result<Vec<Command>> {
    let folder = rivals()?;
    let (python, script) = (folder.join("python/bin/python"), folder.join("gloo.py"));
    installed(&python, Library::Gloo)?;
    installed(&script, Library::Gloo)?;
    let ranks = (0..setting.ranks).map(|rank| {
        let mut command = program_of(&python);
        command.arg(&script);
        common(&mut command, setting);
        command.env("MUSTER_BENCH_RANK", rank.to_string()).env("MUSTER_BENCH_WORLD", setting.ranks.to_string());
        command.envs([("OMP_NUM_THREADS", "1"), ("GLOO_SOCKET_IFNAME", "lo")]);
        if let Some(core) = setting.cores.get(rank) {
            command.env("MUSTER_BENCH_CORE", core.to_string());
        }
        command
    });
    Ok(ranks.collect())
}

fn mpi(setting: &Setting<'_>) -> Result<Command> {
    let program = rivals()?.join("mpi");
    installed(&program, Library::Mpi)?;
    let mut command = program_of(Path::new("mpirun"));
    if nix::unistd::geteuid().is_root() {
        command.arg("--allow-run-as-root");
    }
    if setting.cores.is_empty() {
        command.args(["--bind-to", "none", "--oversubscribe"]);
    } else {
        command.args(["--bind-to", "core"]);
    }
    match setting.transport {
        TransportChoice::Tcp => {
            command.args(["--mca", "pml", "ob1", "--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", "lo"]);
        }
        TransportChoice::Auto | TransportChoice::Shm => {
            command.args(["--mca", "pml", "ob1", "--mca", "btl", "vader,self"]);
        }
    }
    command.args(["-np", &setting.ranks.to_string()]).arg(program);
    common(&mut command, setting);
    Ok(command)
}

#[expect(clippy::disallowed_methods, reason = "the ranks of a benchmark are no pods")]
fn program_of(path: &Path) -> Command {
    Command::new(path)
}

fn common(command: &mut Command, setting: &Setting<'_>) {
    command.env("MUSTER_BENCH_DIR", setting.folder).env("MUSTER_BENCH_BYTES", setting.bytes.to_string());
}

/// Where `make rivals` puts them.
fn rivals() -> Result<PathBuf> {
    Ok(settings::xdg(env::XDG_CACHE_HOME, ".cache")?.join("muster/rivals"))
}

fn installed(path: &Path, library: Library) -> Result<()> {
    if !path.exists() {
        bail!("{} is not installed ({} is missing): run `make rivals`", library.name(), path.display());
    }
    Ok(())
}

fn show(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
