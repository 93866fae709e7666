//! The network: what ranks of different hosts do together over TCP.
//!
//! ```text
//! operations   an operation is one passage, or several: a schedule with the buffers it works on
//!   options    which schedule; settings
//!   passage    carries a schedule out: headers compared, sends and receives overlapped
//!     wire     rounding what goes out, combining what comes in
//!     frame    headers
//!   links      connections, made when first needed; waits, and whom they blame
//!     table    the state of each, shared with
//!     acceptor the thread that accepts, from authenticated ranks of this epoch only
//!     socket   socket options
//! ```

mod acceptor;
mod frame;
mod links;
mod operations;
pub(crate) mod options;
mod passage;
mod socket;
mod table;
#[cfg(test)]
mod tests;
mod wire;

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use acceptor::Acceptor;
use links::Links;
use options::TcpOptions;
use passage::Scratch;
use table::{Key, Table};

use crate::error::Error;
use crate::monitor::{ControlLink, Watch};
use crate::transport::connect::Identity;
use crate::transport::handshake::Purpose;
use crate::transport::tls::Tls;

/// How long a rank with a processor of its own looks for data again and again before it sleeps: to be woken takes longer
/// than most ranks are apart.
const SPIN: Duration = Duration::from_millis(1);

/// This rank's connections to other ranks.
pub(crate) struct Network {
    // First to go: nobody is let in any more when the connections are closed.
    _acceptor: Acceptor,
    links: Links,
    scratch: Scratch,
    /// For operations that need memory beside the caller's; u64 for its alignment.
    workspace: Vec<u64>,
    options: TcpOptions,
}

/// Which ranks take part in an operation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Members {
    /// World ranks, ascending.
    pub(crate) ranks: Vec<usize>,
    /// This rank's index among them.
    pub(crate) me: usize,
}

impl Network {
    /// Begins to accept connections at `listener`; the first is made by [`Network::join`], all others when an operation
    /// first needs them. `addresses` are those of all ranks, `local_ranks` says how many share this machine.
    pub(crate) fn start(
        identity: &Identity,
        addresses: &[SocketAddr],
        listener: TcpListener,
        local_ranks: usize,
        options: &TcpOptions,
        timeout: Duration,
        watch: Watch,
    ) -> Result<Network, Error> {
        let (rank, world) = (identity.rank as usize, addresses.len());
        let previous = (world > 1).then_some((rank + world - 1) % world);
        let table = Table::new(rank, previous, watch);
        let table = Arc::new(table.map_err(|errno| identity.system("eventfd", errno))?);
        let tls = options.tls.then(Tls::new).transpose().map_err(|error| identity.system("tls", error))?;
        let acceptor = Acceptor::start(identity.clone(), listener, tls.clone(), Arc::clone(&table))
            .map_err(|error| identity.system("listener", error))?;
        // Ranks that call themselves different hosts may share one all the same.
        let neighbours_here = addresses.iter().filter(|address| address.ip() == addresses[rank].ip()).count();
        let spin = if have_processors(local_ranks.max(neighbours_here)) { SPIN } else { Duration::ZERO };
        let links = Links::new(identity, addresses, tls, table, timeout, spin);
        let (scratch, workspace, options) = (Scratch::default(), Vec::new(), options.clone());
        Ok(Network { _acceptor: acceptor, links, scratch, workspace, options })
    }

    /// Connects the ring of control connections, over which every rank hears what has become of any other. Returns once
    /// all ranks are in it.
    pub(crate) fn join(&self, identity: &Identity, watch: &Watch) -> Result<(), Error> {
        let (links, breaker) = (&self.links, &identity.breaker);
        let (rank, world) = (links.rank(), links.world());
        if world == 1 {
            return Ok(());
        }
        let (next, previous) = ((rank + 1) % world, (rank + world - 1) % world);
        let key = |rank: usize| Key { rank, purpose: Purpose::Control, lane: 0 };
        let stream = links.dial(key(next), identity.deadline, Duration::MAX);
        let stream = stream.map_err(|undialed| links.fail(undialed.into_error(next as u32)))?;
        watch.add(ControlLink { rank: next, stream, process: None })?;
        if !links.await_control(key(previous), identity.deadline)? {
            return Err(breaker.overdue(previous, "it has not connected in time"));
        }
        match breaker.close_ring(identity.deadline)? {
            true => Ok(()),
            false => Err(breaker.overdue(previous, "it, or a rank before it, has not met its neighbours in time")),
        }
    }
}

/// Whether `ranks` ranks of this machine have a processor each. One that may run on fewer than there are ranks is bound
/// to its own, as the others are to theirs.
fn have_processors(ranks: usize) -> bool {
    // The answer is read from several files.
    static ALLOWED: OnceLock<usize> = OnceLock::new();
    let allowed = *ALLOWED.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from));
    if ranks <= allowed {
        return true;
    }
    let own = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).map_or(0, |own| {
        (0..nix::sched::CpuSet::count()).filter(|processor| own.is_set(*processor).unwrap_or(false)).count()
    });
    let online = nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN).ok().flatten();
    // A quota below that is one of time, which all ranks of a container share.
    own == allowed && own < ranks && online.is_some_and(|online| ranks as i64 <= online)
}
