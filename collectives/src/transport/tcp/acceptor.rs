//! The thread that accepts connections for as long as the network lives.

use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::socket;
use super::table::Table;
use crate::error::Error;
use crate::transport::connect::{Identity, Reception};
use crate::transport::handshake::{Refusal, judge};
use crate::transport::tls::Tls;

/// Handshakes under way beyond two for each rank before the oldest gives way.
const STRANGERS: usize = 64;

/// Ends with the breaker, or when dropped.
pub(super) struct Acceptor {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Acceptor {
    pub(super) fn start(
        identity: Identity,
        listener: TcpListener,
        tls: Option<Tls>,
        table: Arc<Table>,
    ) -> std::io::Result<Acceptor> {
        socket::prepare_listener(&listener)?;
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let thread = {
            let stop = Arc::clone(&stop);
            std::thread::Builder::new()
                .name("collectives-tcp".to_owned())
                .stack_size(256 << 10)
                .spawn(move || accept(&identity, &listener, tls.as_ref(), &stop, &table))?
        };
        Ok(Acceptor { stop, thread: Some(thread) })
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        // An eventfd's counter cannot overflow by one write.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn accept(identity: &Identity, listener: &TcpListener, tls: Option<&Tls>, stop: &EventFd, table: &Table) {
    let Identity { rank, world, epoch, secret, breaker, .. } = identity;
    let limit = STRANGERS + 2 * *world as usize;
    let mut reception = Reception::new(secret.clone(), limit);
    let others: Vec<BorrowedFd<'_>> = breaker.event().into_iter().chain([stop.as_fd()]).collect();
    loop {
        let turn = reception.turn(
            listener.as_fd(),
            &others,
            None,
            || {
                let stream = socket::next(listener)?;
                Ok(match tls {
                    Some(tls) => stream.encrypted(tls.accept()?),
                    None => stream,
                })
            },
            |hello, acceptance| match judge(&hello, *epoch, *world, *rank) {
                Ok(()) => table.receive(&hello, acceptance, *epoch),
                Err(refusal) => {
                    acceptance.refuse(&refusal, *epoch);
                    if let Refusal::Epoch(theirs) = refusal
                        && theirs > *epoch
                    {
                        breaker.trip(Error::StaleEpoch { rank: hello.from as usize, ours: *epoch, theirs });
                    }
                }
            },
        );
        if let Err(error) = turn {
            breaker.trip(identity.system("accept", error));
        }
        // A new epoch may listen at the same socket already.
        if breaker.check().is_err() || !matches!(stop.read(), Err(nix::errno::Errno::EAGAIN)) {
            return;
        }
    }
}
