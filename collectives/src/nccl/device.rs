//! What a test or a bench does on a GPU: streams, events, memory and copies. All of one device's primary context,
//! which CUDA's runtime and PyTorch use as well.

#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::element::Element;
use crate::nccl::RawStream;
use crate::nccl::abi::{CUDA_NOT_READY, CuContext, CuDevicePointer, CuEvent, STREAM_NON_BLOCKING};
use crate::nccl::driver::Device;
use crate::nccl::error::DriverError;

/// A device's primary context, kept alive. Clones are the same one.
#[derive(Clone)]
pub struct Context(Arc<Retained>);

struct Retained {
    device: Device,
    context: CuContext,
}

// SAFETY: contexts belong to no thread; a thread makes one current to use it.
unsafe impl Send for Retained {}
// SAFETY: as above; the driver's functions may be called from any thread.
unsafe impl Sync for Retained {}

impl Context {
    pub fn of(device: &Device) -> Result<Context, DriverError> {
        let mut context = std::ptr::null_mut();
        let retain = device.driver.functions().primary_context_retain;
        // SAFETY: the function writes a handle, which is released once, on drop.
        device.driver.check("cuDevicePrimaryCtxRetain", unsafe { retain(&raw mut context, device.handle) })?;
        Ok(Context(Arc::new(Retained { device: device.clone(), context })))
    }

    pub fn device(&self) -> &Device {
        &self.0.device
    }

    /// Lets this thread's calls to CUDA, its runtime and NCCL mean this device.
    pub fn make_current(&self) -> Result<(), DriverError> {
        let set = self.0.device.driver.functions().context_set_current;
        // SAFETY: the context is retained as long as self lives.
        self.check("cuCtxSetCurrent", unsafe { set(self.0.context) })
    }

    pub fn stream(&self) -> Result<Stream, DriverError> {
        self.make_current()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the function writes a handle, which is destroyed once, on drop.
        let code = unsafe { (self.functions().stream_create)(&raw mut raw, STREAM_NON_BLOCKING) };
        self.check("cuStreamCreate", code)?;
        Ok(Stream { context: self.clone(), raw })
    }

    pub fn event(&self) -> Result<Event, DriverError> {
        self.make_current()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the function writes a handle, which is destroyed once, on drop.
        self.check("cuEventCreate", unsafe { (self.functions().event_create)(&raw mut raw, 0) })?;
        Ok(Event { context: self.clone(), raw })
    }

    pub fn allocate(&self, bytes: usize) -> Result<DeviceBuffer, DriverError> {
        self.make_current()?;
        let mut pointer = 0;
        // SAFETY: the function writes a pointer, which is freed once, on drop. It refuses zero bytes.
        let code = unsafe { (self.functions().mem_alloc)(&raw mut pointer, bytes.max(1)) };
        self.check("cuMemAlloc", code)?;
        Ok(DeviceBuffer { context: self.clone(), pointer, bytes })
    }

    /// Memory of the device that holds a copy of the elements.
    pub fn copy_of<T: Element>(&self, elements: &[T]) -> Result<DeviceBuffer, DriverError> {
        let mut buffer = self.allocate(size_of_val(elements))?;
        buffer.copy_from(elements)?;
        Ok(buffer)
    }

    fn functions(&self) -> &super::abi::CudaFunctions {
        self.0.device.driver.functions()
    }

    fn check(&self, function: &'static str, code: c_int) -> Result<(), DriverError> {
        self.0.device.driver.check(function, code)
    }
}

impl Drop for Retained {
    fn drop(&mut self) {
        // SAFETY: it was retained once, and everything made in it keeps a clone.
        unsafe { (self.device.driver.functions().primary_context_release)(self.device.handle) };
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Context({:?})", self.0.device)
    }
}

/// A queue of work. It does not wait for the default stream, nor that one for it.
pub struct Stream {
    context: Context,
    raw: RawStream,
}

impl Stream {
    pub fn raw(&self) -> RawStream {
        self.raw
    }

    /// Whether all work on it is done.
    pub fn is_done(&self) -> Result<bool, DriverError> {
        // SAFETY: the stream lives as long as self.
        match unsafe { (self.context.functions().stream_query)(self.raw) } {
            CUDA_NOT_READY => Ok(false),
            code => self.context.check("cuStreamQuery", code).map(|()| true),
        }
    }

    /// Waits for all work on it, however long that takes.
    pub fn synchronize(&self) -> Result<(), DriverError> {
        // SAFETY: as above.
        self.context.check("cuStreamSynchronize", unsafe { (self.context.functions().stream_synchronize)(self.raw) })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: made once, destroyed once; work that is still on it goes on.
        unsafe { (self.context.functions().stream_destroy)(self.raw) };
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stream({:?})", self.context)
    }
}

// SAFETY: streams belong to no thread, and this type only hands its handle to the driver.
unsafe impl Send for Stream {}
// SAFETY: the driver's functions may be called from any thread.
unsafe impl Sync for Stream {}

/// A mark in a stream, with the time when it was passed.
pub struct Event {
    context: Context,
    raw: CuEvent,
}

impl Event {
    pub fn record(&self, stream: &Stream) -> Result<(), DriverError> {
        // SAFETY: both live during the call.
        let code = unsafe { (self.context.functions().event_record)(self.raw, stream.raw) };
        self.context.check("cuEventRecord", code)
    }

    /// Whether the stream has passed it.
    pub fn is_done(&self) -> Result<bool, DriverError> {
        // SAFETY: the event lives as long as self.
        match unsafe { (self.context.functions().event_query)(self.raw) } {
            CUDA_NOT_READY => Ok(false),
            code => self.context.check("cuEventQuery", code).map(|()| true),
        }
    }

    /// The GPU's time between two events that were both passed.
    pub fn since(&self, earlier: &Event) -> Result<Duration, DriverError> {
        let mut milliseconds = 0f32;
        let elapsed = self.context.functions().event_elapsed_time;
        // SAFETY: both live during the call, which writes one float.
        let code = unsafe { elapsed(&raw mut milliseconds, earlier.raw, self.raw) };
        self.context.check("cuEventElapsedTime", code)?;
        Ok(Duration::try_from_secs_f64(f64::from(milliseconds) / 1e3).unwrap_or_default())
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made once, destroyed once.
        unsafe { (self.context.functions().event_destroy)(self.raw) };
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Event({:?})", self.context)
    }
}

// SAFETY: as for streams.
unsafe impl Send for Event {}
// SAFETY: as for streams.
unsafe impl Sync for Event {}

/// Memory of a device.
pub struct DeviceBuffer {
    context: Context,
    pointer: CuDevicePointer,
    bytes: usize,
}

impl DeviceBuffer {
    pub fn pointer(&self) -> *mut c_void {
        std::ptr::with_exposed_provenance_mut(self.pointer as usize)
    }

    pub fn len(&self) -> usize {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Copies elements to its beginning. Streams are not waited for: work on this memory shall be done.
    pub fn copy_from<T: Element>(&mut self, elements: &[T]) -> Result<(), DriverError> {
        let bytes = size_of_val(elements);
        self.check_fits(bytes)?;
        self.context.make_current()?;
        // SAFETY: both hold that many bytes, and the call returns when they may be used again.
        let code = unsafe { (self.context.functions().copy_to_device)(self.pointer, elements.as_ptr().cast(), bytes) };
        self.context.check("cuMemcpyHtoD", code)
    }

    /// Copies elements from its beginning, as [`DeviceBuffer::copy_from`] does.
    pub fn copy_to<T: Element>(&self, elements: &mut [T]) -> Result<(), DriverError> {
        let bytes = size_of_val(elements);
        self.check_fits(bytes)?;
        self.context.make_current()?;
        // SAFETY: as above; any bytes are valid elements.
        let code =
            unsafe { (self.context.functions().copy_to_host)(elements.as_mut_ptr().cast(), self.pointer, bytes) };
        self.context.check("cuMemcpyDtoH", code)
    }

    fn check_fits(&self, bytes: usize) -> Result<(), DriverError> {
        match bytes <= self.bytes {
            true => Ok(()),
            false => Err(DriverError::Argument(format!("a copy of {bytes} bytes, where memory has {}", self.bytes))),
        }
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        if self.context.make_current().is_ok() {
            // SAFETY: allocated once, freed once. The driver waits for work on it.
            unsafe { (self.context.functions().mem_free)(self.pointer) };
        }
    }
}

impl fmt::Debug for DeviceBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceBuffer({} bytes)", self.bytes)
    }
}
