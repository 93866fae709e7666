//! One rank of Muster: the hidden command `muster bench-rank`. It waits for commands without using the processor, so
//! that it takes nothing from another library that is measured meanwhile.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use muster_collectives::{Communicator, Config, Data, DataMut, Peer, Secret, SharedBuffer, Transports};

use super::command::{PROTOCOL, Run, Times};
use super::data::Recipe;
use super::operation::ROOT;
use super::processors;
use crate::cli::{BenchRankArgs, BufferKind, Operation, TransportChoice};
use crate::exit::ExitStatus;

/// Private buffers begin at a page, as those of allocators of large blocks do.
const PAGE: usize = 4096;

pub(crate) fn run(args: &BenchRankArgs) -> Result<ExitStatus> {
    if let Some(core) = args.core {
        // Before any thread starts, which would not be bound.
        processors::bind(core)?;
    }
    let pipe = |end: &str| args.folder.join(format!("muster-{}.{end}", args.rank));
    let commands = File::open(pipe("in")).context("failed to open the pipe of commands")?;
    let mut answers = File::options().write(true).open(pipe("out")).context("failed to open the pipe of answers")?;
    let seat = Seat { rank: args.rank, transport: args.transport, bytes: args.bytes };
    serve(&seat, BufReader::new(commands), &mut answers).map(|()| ExitStatus::Success)
}

/// What a rank must know before it is told anything.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seat {
    pub(super) rank: usize,
    pub(super) transport: TransportChoice,
    /// The largest size that is to come.
    pub(super) bytes: usize,
}

/// Joins the others, then does what it is told until the commands end.
pub(super) fn serve(seat: &Seat, commands: impl BufRead, answers: &mut impl Write) -> Result<()> {
    let end = obey(seat, commands, answers);
    if let Err(error) = &end {
        let text = format!("{error:#}").replace('\n', " ");
        // The coordinator may be gone.
        let _ = writeln!(answers, "error {text}");
    }
    end
}

fn obey(seat: &Seat, commands: impl BufRead, answers: &mut impl Write) -> Result<()> {
    let mut commands = commands.lines();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("failed to listen")?;
    say(answers, &format!("address {}", listener.local_addr()?))?;
    let Some(peers) = commands.next() else { return Ok(()) };
    let config = configuration(seat, listener, &peers?)?;
    let communicator = Communicator::connect(config).context("failed to connect the ranks")?;
    let mut buffers = Buffers::new(&communicator, seat.bytes);
    say(answers, &format!("ready {PROTOCOL} muster {}", env!("CARGO_PKG_VERSION")))?;
    for line in commands {
        let line = line?;
        if line == "end" {
            break;
        }
        let times = measure(&communicator, &mut buffers, &Run::decode(&line)?)?;
        say(answers, &times.encode())?;
    }
    Ok(())
}

fn say(answers: &mut impl Write, line: &str) -> Result<()> {
    answers.write_all(format!("{line}\n").as_bytes()).context("the coordinator is gone")
}

/// From `peers SECRET ADDRESS...`, the addresses by rank.
fn configuration(seat: &Seat, listener: TcpListener, line: &str) -> Result<Config> {
    let mut words = line.split_whitespace();
    let (Some("peers"), Some(secret)) = (words.next(), words.next()) else { bail!("expected the peers") };
    let peers = words
        .map(|address| {
            let address: SocketAddr = address.parse().context("a peer's address")?;
            Ok(Peer { host: address.ip().to_string(), address })
        })
        .collect::<Result<Vec<_>>>()?;
    let mut config = Config::new(seat.rank, 1, peers, listener, Secret::new(secret));
    config.label = "muster bench".to_owned();
    if seat.transport == TransportChoice::Tcp {
        config.transports = Transports::TcpOnly;
    }
    Ok(config)
}

/// Buffers of one kind: what a rank gives, and where it gets a result that does not take its place.
struct Pair<B> {
    given: B,
    got: B,
}

/// Made when they are first used, and then kept: their pages are there when anything is timed.
struct Buffers<'a> {
    communicator: &'a Communicator,
    /// The most that an operation needs of each.
    bytes: usize,
    shared: Option<Pair<SharedBuffer<u8>>>,
    private: Option<Pair<Private>>,
}

struct Private {
    memory: Vec<u8>,
    start: usize,
}

impl Private {
    fn new(bytes: usize) -> Private {
        let memory = vec![0; bytes + PAGE];
        let start = memory.as_ptr().align_offset(PAGE);
        Private { memory, start }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..]
    }
}

impl<'a> Buffers<'a> {
    fn new(communicator: &'a Communicator, bytes: usize) -> Buffers<'a> {
        Buffers { communicator, bytes, shared: None, private: None }
    }

    fn of(&mut self, kind: BufferKind, operation: Operation) -> Result<(&mut [u8], &mut [u8])> {
        let world = self.communicator.world();
        let (give, get) = (operation.given(self.bytes, world), operation.got(self.bytes, world));
        match kind {
            BufferKind::Private => {
                let pair =
                    self.private.get_or_insert_with(|| Pair { given: Private::new(give), got: Private::new(get) });
                Ok((pair.given.bytes(), pair.got.bytes()))
            }
            BufferKind::Shared => {
                let pair = match &mut self.shared {
                    Some(pair) => pair,
                    none => {
                        let allocate =
                            |bytes| self.communicator.allocate::<u8>(bytes).context("failed to allocate a buffer");
                        none.insert(Pair { given: allocate(give)?, got: allocate(get)? })
                    }
                };
                Ok((&mut pair.given, &mut pair.got))
            }
        }
    }
}

fn measure(communicator: &Communicator, buffers: &mut Buffers<'_>, run: &Run) -> Result<Times> {
    let Run { operation, dtype, op, buffer, size, warmup, iterations, seed } = *run;
    let (rank, world) = (communicator.rank(), communicator.world());
    let (given, got) = buffers.of(buffer, operation)?;
    let given = given.get_mut(..operation.given(size, world)).context("a size above the one announced")?;
    let got = got.get_mut(..operation.got(size, world)).context("a size above the one announced")?;
    let content = operation.content(op);
    let mut times = Times { wrong: 0, nanoseconds: Vec::with_capacity(iterations) };
    for iteration in 0..warmup + iterations {
        let recipe = Recipe { dtype, content, seed: seed.wrapping_add(iteration as u64) };
        recipe.fill(given, 0, rank);
        communicator.barrier()?;
        let started = Instant::now();
        operate(communicator, run, given, got)?;
        let took = started.elapsed();
        // Where ranks share a processor, one that checks its result would keep another from ending.
        communicator.barrier()?;
        times.wrong += wrong(operation, recipe, given, got, rank, world) as u64;
        if iteration >= warmup {
            times.nanoseconds.push(took.as_nanos() as u64);
        }
    }
    // No answer wakes the coordinator while a rank is still timing.
    communicator.barrier()?;
    Ok(times)
}

/// What is timed.
#[inline]
fn operate(communicator: &Communicator, run: &Run, given: &mut [u8], got: &mut [u8]) -> Result<()> {
    let (dtype, op) = (run.dtype, run.op);
    let (rank, world) = (communicator.rank(), communicator.world());
    // The calls that take two buffers, and those that take one.
    let (input, output) = match run.operation {
        Operation::AllReduce => return Ok(communicator.all_reduce(DataMut::from_bytes(dtype, given)?, op)?),
        Operation::Broadcast => return Ok(communicator.broadcast(DataMut::from_bytes(dtype, given)?, ROOT)?),
        Operation::Reduce => return Ok(communicator.reduce(DataMut::from_bytes(dtype, given)?, op, ROOT)?),
        Operation::Barrier => return Ok(communicator.barrier()?),
        _ => (Data::from_bytes(dtype, given)?, DataMut::from_bytes(dtype, got)?),
    };
    match run.operation {
        Operation::ReduceScatter => communicator.reduce_scatter(input, output, op)?,
        Operation::Gather => communicator.gather(input, (rank == ROOT).then_some(output), ROOT)?,
        Operation::Scatter => communicator.scatter((rank == ROOT).then_some(input), output, ROOT)?,
        Operation::AllToAll => communicator.all_to_all(input, output)?,
        Operation::SendRecv if world > 1 => {
            communicator.send_receive(input, (rank + 1) % world, output, (rank + world - 1) % world)?;
        }
        // Alone, a rank sends to itself what it gathers.
        _ => communicator.all_gather(input, output)?,
    }
    Ok(())
}

/// How many elements of this rank's result are not what they should be.
fn wrong(operation: Operation, recipe: Recipe, given: &[u8], got: &[u8], rank: usize, world: usize) -> usize {
    let part = got.len() / recipe.dtype.size();
    match operation {
        Operation::AllReduce => recipe.wrong_reduced(given, 0, world),
        Operation::Reduce if rank == ROOT => recipe.wrong_reduced(given, 0, world),
        Operation::ReduceScatter => recipe.wrong_reduced(got, rank * part, world),
        Operation::Broadcast => recipe.wrong_copied(given, 0, ROOT),
        Operation::Scatter => recipe.wrong_copied(got, rank * part, ROOT),
        Operation::SendRecv => recipe.wrong_copied(got, 0, (rank + world - 1) % world),
        Operation::AllToAll => parts(got, world)
            .map(|(from, part)| recipe.wrong_copied(part, rank * (part.len() / recipe.dtype.size()), from))
            .sum(),
        Operation::Gather if rank != ROOT => 0,
        Operation::AllGather | Operation::Gather => {
            parts(got, world).map(|(from, part)| recipe.wrong_copied(part, 0, from)).sum()
        }
        Operation::Reduce | Operation::Barrier => 0,
    }
}

/// Equal parts, one from each rank.
fn parts(bytes: &[u8], world: usize) -> impl Iterator<Item = (usize, &[u8])> {
    bytes.chunks_exact((bytes.len() / world).max(1)).enumerate()
}
