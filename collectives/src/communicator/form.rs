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
use crate::monitor::{ControlLink, Monitor};
use crate::order::Order;
use crate::origin::Origin;
use crate::segment::Segments;
use crate::transport::connect::Identity;
use crate::transport::shm::{Group, Life, Region, Seats};
use crate::transport::stream::{Interruption, Stream};
use crate::transport::tcp::{Members, Network};
use crate::transport::{memory, unix};

pub(super) fn connect(config: Config, breaker: &Arc<Breaker>) -> Result<Communicator, Error> {
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
    let mut links = Vec::new();
    let mut memory = Vec::new();
    let mut region = None;
    if members.len() > 1 {
        // Very many ranks still have room for a part each.
        let window = if spans { WINDOW_BETWEEN_HOSTS } else { WINDOW }.max(members.len() * PART);
        let scope = format!("{} {}", peers[members[0]].host, peers[members[0]].address);
        let connected = share(&identity, members, &scope, window)?;
        links.extend(connected.links);
        memory = connected.memory;
        region = Some(connected.region);
    }
    let leaders = (place == 0).then(|| Members { ranks: topology.leaders(), me: host });
    let mut network = None;
    if spans {
        let addresses: Vec<_> = peers.iter().map(|peer| peer.address).collect();
        let local_ranks = peers.iter().filter(|peer| peer.host == peers[rank].host).count();
        let (connected, controls) = Network::connect(&identity, &addresses, listener, local_ranks, &tcp, timeout)
            .inspect_err(|error| links.iter().for_each(|link| link.send_abort(&error.encode())))?;
        network = Some(connected);
        links.extend(controls);
    }
    let links: Vec<Arc<ControlLink>> = links.into_iter().map(Arc::new).collect();
    let monitor = match links.is_empty() {
        true => None,
        false => {
            let monitor = Monitor::start(links.clone(), Arc::clone(breaker));
            Some(monitor.map_err(|error| identity.system("thread", error))?)
        }
    };
    breaker.attach(links, region.clone())?;
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
    Ok(Communicator { inner: Arc::new(inner), background: Mutex::new(None), _monitor: monitor, _life: life })
}

/// What a rank holds of its host's group.
struct Shared {
    links: Vec<ControlLink>,
    memory: Vec<Stream>,
    region: Arc<Region>,
}

/// Connects the ranks of one host, and maps the memory that the first of them makes.
fn share(identity: &Identity, members: &[usize], scope: &str, window: usize) -> Result<Shared, Error> {
    use std::os::fd::AsFd;
    let Identity { rank, deadline, breaker, .. } = identity;
    let leader = members[0];
    let length = Region::length(members.len(), window);
    let interrupted = |peer: usize| {
        move |interruption: Interruption| match interruption {
            Interruption::Tripped(error) => error,
            other => Error::Connect { rank: peer, cause: other.to_string() },
        }
    };
    let (fd, peers) = if *rank as usize == leader {
        let others: Vec<u32> = members.iter().skip(1).map(|member| *member as u32).collect();
        let peers = unix::lead(identity, &others, scope)?;
        let fd = memory::create(length).map_err(|error| identity.system("shared memory", error))?;
        for peer in &peers {
            peer.memory.send_fd(fd.as_fd(), *deadline, breaker).map_err(interrupted(peer.control.rank))?;
        }
        (fd, peers)
    } else {
        let peer = unix::follow(identity, leader as u32, scope)?;
        let fd = peer.memory.receive_fd(*deadline, breaker).map_err(interrupted(leader))?;
        (fd, vec![peer])
    };
    let map = memory::map(fd, length).map_err(|error| identity.system("shared memory", error))?;
    let (links, memory) = peers.into_iter().map(|peer| (peer.control, peer.memory)).unzip();
    Ok(Shared { links, memory, region: Arc::new(Region::new(map, members.len(), window)) })
}
