//! How a communicator comes to be: the ranks of a host share memory, and all ranks meet over the network where there
//! are several hosts.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::Communicator;
use super::inner::Inner;
use crate::breaker::Breaker;
use crate::config::{Config, Topology};
use crate::engine::{Engine, PART, WINDOW, WINDOW_BETWEEN_HOSTS};
use crate::error::Error;
use crate::flight::{Recorder, Seat};
use crate::monitor::{Monitor, Watch};
use crate::order::Order;
use crate::origin::Origin;
use crate::segment::Segments;
use crate::transport::connect::Identity;
use crate::transport::shm::{Group, Life, Region, Seats};
use crate::transport::stream::{Interruption, Stream};
use crate::transport::tcp::{Members, Network};
use crate::transport::{memory, unix};

/// Whatever goes wrong ends the breaker as well, so that nothing waits in the background, and all ranks that are
/// connected already hear of it.
pub(super) fn connect(config: Config, breaker: &Arc<Breaker>) -> Result<Communicator, Error> {
    let (rank, world) = (config.rank, config.world);
    let made = (world > 1)
        .then(|| Monitor::start(Arc::clone(breaker)))
        .transpose()
        .map_err(|error| Error::System { rank, cause: format!("thread: {error}") })
        .map_err(|error| breaker.trip(error))
        .and_then(|monitor| {
            // Before the monitor says good-bye.
            let formed =
                form(config, breaker, monitor.as_ref().map(Monitor::watch)).map_err(|error| breaker.trip(error));
            formed.map(|formed| (formed, monitor))
        });
    match made {
        Ok((Formed { inner, life }, monitor)) => {
            Ok(Communicator { inner: Arc::new(inner), background: Mutex::new(None), _monitor: monitor, _life: life })
        }
        Err(error) => {
            // A handle that lives on keeps nothing of it.
            breaker.detach();
            Err(error)
        }
    }
}

struct Formed {
    inner: Inner,
    life: Option<Life>,
}

/// There is a watch where there are other ranks.
fn form(config: Config, breaker: &Arc<Breaker>, watch: Option<Watch>) -> Result<Formed, Error> {
    let recorder = Recorder::new(&Seat::of(&config)).map(Arc::new);
    let Config {
        rank,
        world,
        epoch,
        label,
        peers,
        listener,
        secret,
        transports,
        shm,
        tcp,
        connect_timeout,
        timeout,
        abort: _,
    } = config;
    let topology = Topology::new(&peers, transports);
    let origin = Origin {
        label,
        peers: peers.clone(),
        secret: secret.clone(),
        transports,
        shm,
        tcp: tcp.clone(),
        connect_timeout,
        timeout,
    };
    let (host, place) = topology.place(rank);
    let members = &topology.groups[host];
    let identity = Identity {
        rank: rank as u32,
        world: world as u32,
        epoch,
        secret,
        deadline: Instant::now() + connect_timeout,
        breaker: Arc::clone(breaker),
    };
    let recorder = recorder.map_err(|error| identity.system("flight recorder", error))?;
    breaker.record(Arc::clone(&recorder));
    let spans = topology.spans_hosts();
    let mut network = None;
    if let Some(watch) = watch.clone().filter(|_| spans) {
        let addresses: Vec<_> = peers.iter().map(|peer| peer.address).collect();
        let local_ranks = peers.iter().filter(|peer| peer.host == peers[rank].host).count();
        // Before anything is waited for: the neighbours shall not take this rank for the one that is missing.
        network = Some(Network::start(&identity, &addresses, listener, local_ranks, &tcp, timeout, watch)?);
    }
    let mut memory = Vec::new();
    let mut region = None;
    if let Some(watch) = watch.as_ref().filter(|_| members.len() > 1) {
        // Very many ranks still have room for a part each.
        let window = if spans { WINDOW_BETWEEN_HOSTS } else { WINDOW }.max(members.len() * PART);
        let scope = format!("{} {}", peers[members[0]].host, peers[members[0]].address);
        let shared;
        (memory, shared) = share(&identity, members, &scope, window, watch)?;
        breaker.attach_region(Arc::clone(&shared))?;
        region = Some(shared);
    }
    let leaders = (place == 0).then(|| Members { ranks: topology.leaders(), me: host });
    if let (Some(network), Some(watch)) = (&network, &watch) {
        network.join(&identity, watch)?;
    }
    breaker.connected();
    let members = members.clone();
    let life = match &region {
        None => None,
        Some(region) => {
            let life = Life::start(Arc::clone(region), place, members.clone(), Arc::clone(breaker));
            Some(life.map_err(|error| identity.system("thread", error))?)
        }
    };
    let segments = Arc::new(Segments::default());
    let group = region.map(|region| {
        let seats = Seats { region, me: place, ranks: members, spans };
        Group::new(seats, Arc::clone(breaker), timeout, Arc::clone(&segments), shm)
    });
    let breaker = Arc::clone(breaker);
    let engine = Engine {
        topology,
        host,
        rank,
        world,
        group,
        network,
        leaders,
        everybody: Members { ranks: (0..world).collect(), me: rank },
        memory,
        breaker: Arc::clone(&breaker),
        timeout,
        operations: 0,
        messages: Default::default(),
    };
    let inner = Inner {
        rank,
        world,
        epoch,
        breaker,
        recorder,
        order: Order::default(),
        engine: Mutex::new(engine),
        segments,
        origin,
    };
    Ok(Formed { inner, life })
}

/// Connects the ranks of one host, and maps the memory that the first of them makes. Gives the connections for memory
/// too: to all members in their order, or to the leader.
fn share(
    identity: &Identity,
    members: &[usize],
    scope: &str,
    window: usize,
    watch: &Watch,
) -> Result<(Vec<Stream>, Arc<Region>), Error> {
    use std::os::fd::AsFd;
    let Identity { rank, deadline, breaker, .. } = identity;
    let leader = members[0];
    let length = Region::length(members.len(), window);
    let interrupted = |peer: usize| {
        move |interruption: Interruption| match interruption {
            Interruption::Tripped(error) => error,
            // Its control connection tells why.
            Interruption::Failed(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => breaker.lost(peer),
            Interruption::Deadline => breaker.overdue(peer, "it has not shared its memory in time"),
            other => Error::Connect { rank: peer, cause: other.to_string() },
        }
    };
    let (fd, memory) = if *rank as usize == leader {
        let others: Vec<u32> = members.iter().skip(1).map(|member| *member as u32).collect();
        let memory = unix::lead(identity, &others, scope, watch)?;
        let fd = memory::create(length).map_err(|error| identity.system("shared memory", error))?;
        for (member, stream) in &memory {
            stream.send_fd(fd.as_fd(), *deadline, breaker).map_err(interrupted(*member as usize))?;
        }
        // Members are in ascending order.
        (fd, memory.into_values().collect())
    } else {
        let memory = unix::follow(identity, leader as u32, scope, watch)?;
        let fd = memory.receive_fd(*deadline, breaker).map_err(interrupted(leader))?;
        (fd, vec![memory])
    };
    let map = memory::map(fd, length).map_err(|error| identity.system("shared memory", error))?;
    Ok((memory, Arc::new(Region::new(map, members.len(), window))))
}
