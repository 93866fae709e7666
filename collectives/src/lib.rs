//! Allreduce and its kin over shared memory and TCP.
//!
//! A [`Communicator`] holds the ranks of one epoch of a job. Ranks of one host meet in shared memory; those of
//! different hosts reach each other over TCP, in reductions by way of one rank of each host. Who the ranks are is decided elsewhere: a [`Config`] names them all, and
//! nothing here looks for peers, elects anybody or repairs a group. When a rank is lost, every call of every other
//! rank fails soon and says why, and a new communicator is formed at a higher epoch.
//!
//! Only std threads: no async runtime, no RPC, no tensor library.
//!
//! ```text
//! communicator   what is called; `order` has it take turns, `engine` carries it out: host, between hosts, host
//!   transport/shm    ranks of a host: meetings, windows, reduction in place
//!   transport/tcp    the network between hosts, carrying out `schedule`
//!   reduce           the arithmetic
//! breaker        the end of a communicator, and its cause; `monitor` watches for it, `dispute` says whose call differs
//! flight         the last operations of each rank, for other processes to read, and who waits for whom
//! nccl           the same operations between GPUs, by NCCL
//! ```

mod background;
mod breaker;
mod call;
mod communicator;
mod config;
mod dispute;
mod element;
mod engine;
mod error;
pub mod flight;
mod monitor;
pub mod nccl;
mod order;
mod origin;
mod pending;
mod reduce;
mod schedule;
mod segment;
mod sync;
mod ticks;
mod transport;

pub use breaker::AbortHandle;
pub use communicator::Communicator;
pub use config::{Config, Peer, Secret, Transports};
pub use element::{BufferError, DType, Data, DataMut, Element};
pub use error::{Error, LossCause};
pub use pending::{OwnedBuffer, Pending, RawBuffer};
pub use reduce::ReduceOp;
pub use segment::SharedBuffer;
pub use transport::shm::options::{Reading, ShmOptions};
pub use transport::tcp::options::{Algorithm, Compression, Rule, TcpOptions};
