//! Ranks as processes: this test's own binary, started again with one of its tests selected. A rank is told what to do
//! line by line on its standard input, and says what has come of it on its standard output.
#![allow(clippy::disallowed_methods)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use muster_collectives::{Config, Peer, Secret};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const SECRET: &str = "MUSTER_TEST_SECRET";
/// Where a rank listens, if not on the loopback.
const ADDRESS: &str = "MUSTER_TEST_ADDRESS";

/// A secret for the processes of one test.
pub(crate) fn random_secret() -> String {
    let mut bytes = [0u8; 16];
    std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).unwrap();
    format!("{bytes:02x?}")
}

/// A process that is killed and reaped with this value, however the test ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A rank as the test sees it. It dies with this value.
pub(crate) struct Process {
    running: Running,
    input: ChildStdin,
    lines: Receiver<String>,
    pub(crate) address: SocketAddr,
}

impl Process {
    /// Starts a process that runs `test` alone, whose body begins with [`Seat::taken`].
    pub(crate) fn start(test: &str, secret: &str) -> Process {
        Process::started(Command::new(std::env::current_exe().unwrap()), test, secret)
    }

    /// The same in a network namespace, where it listens at `address`.
    pub(crate) fn start_in(namespace: &str, address: &str, test: &str, secret: &str) -> Process {
        // `ip` becomes the rank itself.
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace]).arg(std::env::current_exe().unwrap()).env(ADDRESS, address);
        Process::started(command, test, secret)
    }

    fn started(mut command: Command, test: &str, secret: &str) -> Process {
        let command = command.args(["--exact", test, "--nocapture"]).env(SECRET, secret);
        let mut running = Running(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
        let input = running.0.stdin.take().unwrap();
        let output = BufReader::new(running.0.stdout.take().unwrap());
        let (sender, lines) = channel();
        // Ends with the process.
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let address = expect(&lines, "ADDRESS", HANGS).parse().unwrap();
        Process { running, input, lines, address }
    }

    pub(crate) fn id(&self) -> u32 {
        self.running.0.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.id() as i32), signal).unwrap();
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.running.0.try_wait().unwrap().is_some()
    }

    pub(crate) fn tell(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    /// What follows `word` on the next line that begins with it.
    pub(crate) fn expect(&self, word: &str) -> String {
        expect(&self.lines, word, HANGS)
    }
}

/// A rank that says nothing for so long hangs: longer than any deadline of its own, after which it says why.
const HANGS: Duration = Duration::from_secs(180);

fn expect(lines: &Receiver<String>, word: &str, limit: Duration) -> String {
    let deadline = Instant::now() + limit;
    let mut passed = Vec::new();
    loop {
        let line = lines.recv_timeout(deadline.saturating_duration_since(Instant::now()));
        let line = line.unwrap_or_else(|error| panic!("the rank has not said {word}, but {passed:?}: {error}"));
        if let Some(rest) = line.trim_end().strip_prefix(word) {
            return rest.trim_start().to_owned();
        }
        passed.push(line);
    }
}

/// The words that tell each of `processes` who forms the next communicator, on which hosts, and how long an operation
/// may wait.
pub(crate) fn world(processes: &[&Process], hosts: &[&str], epoch: u64, timeout: Duration) -> String {
    let peers: Vec<String> =
        hosts.iter().zip(processes).map(|(host, process)| format!("{host}={}", process.address)).collect();
    format!("{epoch} {} {}", timeout.as_millis(), peers.join(" "))
}

/// What a process has for all communicators that it takes part in.
pub(crate) struct Seat {
    listener: TcpListener,
    secret: Secret,
}

impl Seat {
    /// Says where this process listens; none if it is the test itself that runs.
    pub(crate) fn taken() -> Option<Seat> {
        let secret = Secret::new(std::env::var(SECRET).ok()?);
        let address = std::env::var(ADDRESS).unwrap_or_else(|_| "127.0.0.1".to_owned());
        let listener = TcpListener::bind((address, 0)).unwrap();
        // The harness has begun a line of its own.
        println!("\nADDRESS {}", listener.local_addr().unwrap());
        Some(Seat { listener, secret })
    }

    /// This process's part in what [`world`] has described.
    pub(crate) fn config(&self, world: &str) -> Config {
        let mut words = world.split(' ');
        let mut number = || words.next().unwrap().parse::<u64>().unwrap();
        let (epoch, timeout) = (number(), Duration::from_millis(number()));
        let peers: Vec<Peer> = words
            .map(|word| {
                let (host, address) = word.split_once('=').unwrap();
                Peer { host: host.to_owned(), address: address.parse().unwrap() }
            })
            .collect();
        let own = self.listener.local_addr().unwrap();
        let rank = peers.iter().position(|peer| peer.address == own).unwrap();
        let mut config = Config::new(rank, epoch, peers, self.listener.try_clone().unwrap(), self.secret.clone());
        config.timeout = timeout;
        config
    }
}

/// Names of ours in the folder of shared memory, where none belong.
pub(crate) fn shared_memory_files() -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir("/dev/shm")
        .map(|entries| entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    names.retain(|name| name.contains("muster"));
    names.sort();
    names
}
