//! How bytes move between ranks: through memory shared on one host, over TCP between hosts.

pub(crate) mod connect;
pub(crate) mod futex;
pub(crate) mod handshake;
pub(crate) mod memory;
pub(crate) mod shm;
pub(crate) mod stream;
pub(crate) mod tcp;
pub(crate) mod tls;
pub(crate) mod unix;
