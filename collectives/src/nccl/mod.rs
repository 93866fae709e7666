//! NCCL, for buffers on GPUs: a thin binding that is loaded at run time, so that nothing here needs CUDA to be built,
//! and a machine without it gets an error that says what was looked for and what to install.
//!
//! ```text
//! library        the search for libnccl, its version, unique ids, memory
//! communicator   operations on a caller's stream and device pointers
//!   handle         one call at a time, the first failure counts, abort from any thread
//!   group          calls that start together
//! driver         the search for libcuda, devices and what connects them
//!   device         streams, events, memory and copies, as far as tests and benches need
//! report         versions and topology, to print
//! abi            what both libraries' headers lay down
//! ```
//!
//! Communicators are made in NCCL's nonblocking mode: forming one can be aborted and has a deadline, and so has every
//! call. What a call puts on a stream runs later: [`Communicator::wait`] waits for a stream, for a failure of the
//! communicator and for a deadline at once.
//!
//! NCCL itself reads its `NCCL_*` variables of the environment; this crate reads none.
//!
//! Not measured: the development machines have no GPU. What stands before the GPU is tested with the real libnccl
//! (loading, version, unique ids, the refusal where there is no GPU), what stands behind it with a stand-in that is
//! compiled against NCCL's and CUDA's headers.

mod abi;
mod communicator;
mod device;
mod driver;
mod error;
mod group;
mod handle;
mod library;
mod loading;
mod report;

pub use communicator::{Communicator, Config, Elements, RegisteredBuffer};
pub use device::{Context, DeviceBuffer, Event, Stream};
pub use driver::{Device, Driver};
pub use error::{DriverError, Error, LoadError};
pub use group::Group;
pub use handle::AbortHandle;
pub use library::{DeviceMemory, Library, UniqueId, Version};
pub use loading::Search;
pub use report::{DeviceReport, DriverReport, LibraryReport, LinkReport, Report};

/// A `cudaStream_t`, which is a `CUstream`: the same pointer in CUDA's two interfaces. Null is the default stream.
pub type RawStream = *mut std::ffi::c_void;
