//! The device and its encoder.

use super::buffer::WriteMark;
use super::{MlxBuffer, Result, check};
use crate::device::Buffer;
use crate::{DType, Device, Stream};

/// A device that buffers are made on and work is encoded for.
#[derive(Clone, Debug)]
pub struct MlxDevice(Device);

impl MlxDevice {
    /// The fastest device here that shares its memory with the host: Apple's GPU, or the CPU.
    pub fn new() -> Result<MlxDevice> {
        MlxDevice::on(Device::metal().unwrap_or_else(|_| Device::cpu()))
    }

    /// A device that shares its memory with the host, which buffers are slices of.
    ///
    /// # Errors
    ///
    /// [`MlxError::InvalidArgument`](super::MlxError::InvalidArgument) for a device with memory of its own, an NVIDIA GPU.
    pub fn on(device: Device) -> Result<MlxDevice> {
        check(device.shares_memory(), || {
            format!(
                "MlxDevice: got {}, whose memory the host does not reach, wanted one that shares memory with the host; \
                 ops::rope_multi takes any device",
                device.kind().name()
            )
        })?;
        Ok(MlxDevice(device))
    }

    /// A buffer of `byte_len` zero bytes that holds a row-major tensor.
    ///
    /// # Errors
    ///
    /// [`MlxError::InvalidArgument`](super::MlxError::InvalidArgument) where `byte_len` is 0 or less than the shape takes.
    pub fn alloc_buffer(&self, byte_len: usize, dtype: DType, shape: Vec<usize>) -> Result<MlxBuffer> {
        check(byte_len > 0, || "alloc_buffer: got 0 bytes, wanted at least one".into())?;
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let bytes = elements.and_then(|n| n.checked_mul(dtype.size()));
        check(bytes.is_some_and(|bytes| bytes <= byte_len), || {
            format!("alloc_buffer: got {byte_len} bytes, wanted enough for {dtype}{shape:?}")
        })?;
        Ok(MlxBuffer::new(self.0.allocate(byte_len)?, dtype, shape, elements.unwrap_or(0)))
    }

    /// An encoder of work for this device.
    pub fn command_encoder(&self) -> Result<CommandEncoder> {
        Ok(CommandEncoder { stream: self.0.stream(), buffers: Vec::new(), writes: Vec::new() })
    }

    /// The device itself, as `dispatch` functions take it.
    pub fn metal_device(&self) -> &Device {
        &self.0
    }

    /// What the device is, for people.
    pub fn name(&self) -> String {
        self.0.description()
    }
}

/// Takes work for a device.
///
/// From a dispatch until [`commit_and_wait`](Self::commit_and_wait) returns, the host can neither write the buffers that
/// the work uses nor read those that it writes.
pub struct CommandEncoder {
    pub(super) stream: Stream,
    /// Handles that keep their buffers from being written by the host.
    buffers: Vec<Buffer>,
    writes: Vec<WriteMark>,
}

impl CommandEncoder {
    /// Runs what was encoded and returns when it is done.
    pub fn commit_and_wait(&mut self) -> Result<()> {
        let done = self.stream.synchronize();
        self.buffers.clear();
        self.writes.clear();
        Ok(done?)
    }

    /// Keeps the host from writing `buffers`, and from reading the one that `mark` is of, until the work is done.
    pub(super) fn hold(&mut self, mark: WriteMark, buffers: [&MlxBuffer; 3]) {
        self.writes.push(mark);
        self.buffers.extend(buffers.map(|b| b.buffer().clone()));
    }
}
