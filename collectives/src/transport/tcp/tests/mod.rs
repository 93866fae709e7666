//! Networks of threads, without the communicator above them.
#![allow(clippy::unwrap_used, clippy::panic)]

mod operations;
mod rounding;
mod trouble;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use half::bf16;
use proptest::prelude::*;

use super::options::{Algorithm, Compression, Rule, TcpOptions};
use super::{Members, Network};
use crate::breaker::AbortHandle;
use crate::call::{Call, Kind};
use crate::config::Secret;
use crate::element::{DType, Data, DataMut, Element};
use crate::error::Error;
use crate::monitor::Monitor;
use crate::reduce::ReduceOp;
use crate::transport::connect::{Identity, Undialed, dial};
use crate::transport::handshake::Purpose;

const SECRET: &str = "the secret of the network's tests";

/// One rank, with what the communicator does for it.
struct Rank {
    // In the order in which they go.
    _monitor: Option<Monitor>,
    network: Network,
    world: usize,
    rank: usize,
    sequence: u64,
    abort: AbortHandle,
}

impl Rank {
    fn all(&self) -> Members {
        Members { ranks: (0..self.world).collect(), me: self.rank }
    }

    fn call(&mut self, kind: Kind, dtype: DType, count: usize) -> Call {
        self.sequence += 1;
        Call { sequence: self.sequence, kind, dtype, count: count as u64 }
    }
}

fn run_with<R: Send>(
    world: usize,
    options: &TcpOptions,
    timeout: Duration,
    address: impl Fn(usize) -> &'static str,
    rank: impl Fn(&mut Rank) -> R + Sync,
) -> Vec<R> {
    let listeners: Vec<TcpListener> = (0..world).map(|rank| TcpListener::bind((address(rank), 0)).unwrap()).collect();
    let addresses: Vec<SocketAddr> = listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
    std::thread::scope(|scope| {
        let threads: Vec<_> = listeners
            .into_iter()
            .enumerate()
            .map(|(number, listener)| {
                let (addresses, rank) = (&addresses, &rank);
                scope.spawn(move || {
                    let abort = AbortHandle::new();
                    abort.0.arm(number, world).unwrap();
                    let identity = Identity {
                        rank: number as u32,
                        world: world as u32,
                        epoch: 1,
                        secret: Secret::new(SECRET),
                        deadline: Instant::now() + Duration::from_secs(60),
                        breaker: Arc::clone(&abort.0),
                    };
                    let monitor = Monitor::start(Arc::clone(&abort.0)).unwrap();
                    let watch = monitor.watch();
                    let network =
                        Network::start(&identity, addresses, listener, world, options, timeout, watch.clone()).unwrap();
                    network.join(&identity, &watch).unwrap();
                    let mut own = Rank {
                        _monitor: Some(monitor),
                        network,
                        world,
                        rank: number,
                        sequence: 0,
                        abort: abort.clone(),
                    };
                    let result = rank(&mut own);
                    abort.0.detach();
                    result
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn run<R: Send>(world: usize, options: &TcpOptions, rank: impl Fn(&mut Rank) -> R + Sync) -> Vec<R> {
    run_with(world, options, Duration::from_secs(60), |_| "127.0.0.1", rank)
}

const ALGORITHMS: [Algorithm; 4] =
    [Algorithm::Direct, Algorithm::RecursiveHalvingDoubling, Algorithm::Ring, Algorithm::Tree];

fn always(algorithm: Algorithm) -> TcpOptions {
    let rule = Rule { ranks_up_to: usize::MAX, bytes_up_to: usize::MAX, algorithm };
    TcpOptions { algorithms: vec![rule], ..TcpOptions::default() }
}

/// Small integers, exact in every dtype.
fn value(rank: usize, index: usize) -> f32 {
    ((rank * 7 + index * 13 + 3) % 11) as f32
}

fn values(rank: usize, count: usize) -> Vec<f32> {
    (0..count).map(|index| value(rank, index)).collect()
}

fn sum(world: usize, index: usize) -> f32 {
    (0..world).map(|rank| value(rank, index)).sum()
}

fn all_reduce<'a>(rank: &mut Rank, data: impl Into<DataMut<'a>>, op: ReduceOp) -> Result<(), Error> {
    let data = data.into();
    let call = rank.call(Kind::AllReduce(op), data.dtype(), data.count());
    let divisor = (op == ReduceOp::Mean).then_some(rank.world);
    rank.network.all_reduce(&rank.all(), &call, data, op, divisor)
}
