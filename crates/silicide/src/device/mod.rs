//! Devices, their memory and the streams that run work on them.
//!
//! This is the only place arranged by back end. An op describes a [`Launch`]; a device's executor runs it. The executor's
//! whole duty is the pair of traits `Executor` and `Queue`.

mod arena;
mod buffer;
mod hazard;
mod host;
mod launch;
mod lock;
mod plan;
mod stream;
#[cfg(test)]
mod tests;

pub mod cpu;
pub(crate) mod cuda;
pub(crate) mod emulated;
#[cfg(target_os = "macos")]
mod metal;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

pub use self::buffer::Buffer;
pub use self::cpu::CpuOptions;
pub use self::cuda::CudaOptions;
pub use self::emulated::EmulatedOptions;
pub use self::launch::{Choice, Cost, Launch};
pub use self::plan::Plan;
pub use self::stream::Stream;

use self::buffer::{Memory, Storage};
pub(crate) use self::launch::{Gpu, TileMap, Tiles};
use crate::{DType, Element, Error, Result, Shape, Tensor};

/// A place where tensors live and ops run. Cloning gives another handle to the same device.
#[derive(Clone)]
pub struct Device(Arc<dyn Executor>);

/// What kind of device it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// The host's processors.
    Cpu,
    /// An Apple GPU.
    Metal,
    /// Metal kernels run on the host, thread by thread, with checks.
    EmulatedMetal,
    /// An NVIDIA GPU.
    Cuda,
    /// An NVIDIA GPU's kernels run on the host, thread by thread, with checks.
    EmulatedCuda,
}

impl DeviceKind {
    /// The name that `--device` takes.
    pub fn name(self) -> &'static str {
        match self {
            DeviceKind::Cpu => "cpu",
            DeviceKind::Metal => "metal",
            DeviceKind::EmulatedMetal => "emulated-metal",
            DeviceKind::Cuda => "cuda",
            DeviceKind::EmulatedCuda => "emulated-cuda",
        }
    }

    /// Whether the host stands for a GPU, so that its speed says nothing.
    pub fn is_emulated(self) -> bool {
        matches!(self, DeviceKind::EmulatedMetal | DeviceKind::EmulatedCuda)
    }
}

impl Device {
    /// The host's processors, all of them.
    pub fn cpu() -> Device {
        Device::cpu_with(CpuOptions::default())
    }

    /// The host's processors, used as `options` say.
    pub fn cpu_with(options: CpuOptions) -> Device {
        Device(Arc::new(cpu::Cpu::new(options)))
    }

    /// Metal kernels run on the host by way of clang, for tests and for machines without an Apple GPU.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] where clang 19 or later is not installed.
    pub fn emulated_metal(options: EmulatedOptions) -> Result<Device> {
        Ok(Device(Arc::new(emulated::Emulated::new(DeviceKind::EmulatedMetal, options)?)))
    }

    /// The kernels of an NVIDIA GPU run on the host by way of clang, its tensor cores included, but for those that need the clusters and the
    /// copy engine of compute capability 9.0.
    ///
    /// # Errors
    ///
    /// As for [`emulated_metal`](Self::emulated_metal).
    pub fn emulated_cuda(options: EmulatedOptions) -> Result<Device> {
        Ok(Device(Arc::new(emulated::Emulated::new(DeviceKind::EmulatedCuda, options)?)))
    }

    /// The system's default Apple GPU.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] where there is none, or this is not macOS.
    pub fn metal() -> Result<Device> {
        #[cfg(target_os = "macos")]
        return Ok(Device(Arc::new(metal::Metal::new()?)));
        #[cfg(not(target_os = "macos"))]
        Err(Error::Device {
            device: "metal".into(),
            message: "Metal needs macOS; use the cpu device, or emulated-metal to run Metal kernels here".into(),
        })
    }

    /// The first NVIDIA GPU. Its driver and compiler are loaded when this is called, so a program that can use them also
    /// runs where they are not.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] where there is no GPU, no driver or no NVRTC, with what to do about it.
    pub fn cuda() -> Result<Device> {
        Device::cuda_with(CudaOptions::default())
    }

    /// The NVIDIA GPU that `options` name, used as they say.
    ///
    /// # Errors
    ///
    /// As for [`cuda`](Self::cuda).
    pub fn cuda_with(options: CudaOptions) -> Result<Device> {
        Ok(Device(Arc::new(cuda::Cuda::new(options)?)))
    }

    /// The fastest device here: an Apple or NVIDIA GPU where there is one, else the CPU.
    pub fn auto() -> Device {
        Device::metal().or_else(|_| Device::cuda()).unwrap_or_else(|_| Device::cpu())
    }

    /// Bytes of its memory that can still be taken, where the device has memory of its own.
    pub fn free_memory(&self) -> Option<usize> {
        self.0.free_memory()
    }

    /// The compute capability of an NVIDIA GPU.
    pub(crate) fn compute_capability(&self) -> Option<(u32, u32)> {
        self.0.compute_capability()
    }

    /// How many processors a GPU has, where that is known.
    pub(crate) fn processors(&self) -> Option<u32> {
        self.0.processors()
    }

    /// Whether the host reaches its memory.
    pub(crate) fn shares_memory(&self) -> bool {
        self.0.shares_memory()
    }

    /// Whether it runs kernels written for NVIDIA GPUs.
    pub(crate) fn takes_nvidia_kernels(&self) -> bool {
        self.0.takes_nvidia_kernels()
    }

    /// Bytes of threadgroup memory that kernels written for NVIDIA GPUs may have, those that they declare included; none elsewhere.
    pub(crate) fn nvidia_threadgroup_memory(&self) -> u32 {
        self.0.nvidia_threadgroup_memory()
    }

    /// What kind of device it is.
    pub fn kind(&self) -> DeviceKind {
        self.0.kind()
    }

    /// What it is, for people: the processor's name and what of it is used.
    pub fn description(&self) -> String {
        self.0.description()
    }

    /// The CPU executor, on a CPU device.
    pub(crate) fn as_cpu(&self) -> Option<&cpu::Cpu> {
        self.0.as_cpu()
    }

    /// A new stream of work.
    pub fn stream(&self) -> Stream {
        Stream::new(self.clone(), self.0.queue())
    }

    /// A new buffer of `len` zero bytes, aligned for every element type and vector.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`].
    pub fn allocate(&self, len: usize) -> Result<Buffer> {
        let memory = self.0.allocate(len)?;
        Ok(Buffer::new(Storage::new(self.clone(), memory, false)))
    }

    /// A new buffer of zero bytes for a weight that the CPU has packed; this is the CPU.
    pub(crate) fn allocate_weight(&self, len: usize) -> Result<Buffer> {
        let cpu = self.as_cpu().expect("only the CPU packs weights");
        Ok(Buffer::new(Storage::new(self.clone(), cpu.allocate_weight(len)?, false)))
    }

    /// A read-only buffer over bytes that already lie in host memory, such as a mapped file: shared, not copied, where
    /// the device can read them in place, else copied.
    pub fn adopt(&self, bytes: Arc<dyn HostBytes>) -> Result<Buffer> {
        match self.0.adopt(&bytes)? {
            Some(memory) => Ok(Buffer::new(Storage::new(self.clone(), memory, true))),
            None => {
                let buffer = self.allocate(bytes.as_ref().as_ref().len())?;
                buffer.host_write(0, bytes.as_ref().as_ref())?;
                Ok(buffer)
            }
        }
    }

    /// A new row-major tensor with these elements.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] where the number of elements is not the shape's.
    pub fn tensor<T: Element>(&self, elements: &[T], shape: impl Into<Shape>) -> Result<Tensor> {
        self.tensor_from_bytes(bytemuck::cast_slice(elements), T::DTYPE, shape)
    }

    /// A new row-major tensor with these bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] where the number of bytes is not the shape's.
    pub fn tensor_from_bytes(&self, bytes: &[u8], dtype: DType, shape: impl Into<Shape>) -> Result<Tensor> {
        let tensor = self.zeros(dtype, shape)?;
        if bytes.len() != tensor.byte_range().len() {
            return Err(Error::argument(
                "tensor",
                format!("got {} bytes, wanted {} for {tensor:?}", bytes.len(), tensor.byte_range().len()),
            ));
        }
        tensor.buffer().host_write(0, bytes)?;
        Ok(tensor)
    }

    /// A new row-major tensor of zeros.
    pub fn zeros(&self, dtype: DType, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        let bytes = byte_len("zeros", dtype, &shape)?;
        Tensor::new(self.allocate(bytes)?, 0, dtype, shape)
    }
}

/// Bytes that a row-major tensor takes, or an error where no machine could hold it.
fn byte_len(op: &'static str, dtype: DType, shape: &Shape) -> Result<usize> {
    shape
        .checked_elements()
        .and_then(|n| n.checked_mul(dtype.size()))
        .filter(|&n| n <= isize::MAX as usize)
        .ok_or_else(|| Error::argument(op, format!("{dtype}{shape} is larger than any memory")))
}

impl PartialEq for Device {
    fn eq(&self, other: &Device) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind().name())
    }
}

/// Bytes in host memory that stay where they are for as long as they are held: a mapped file, a vector.
pub trait HostBytes: AsRef<[u8]> + Send + Sync + 'static {}

impl<T: AsRef<[u8]> + Send + Sync + 'static> HostBytes for T {}

/// Where compiled kernels are kept between runs, unless a device's options say otherwise.
fn default_cache_dir() -> Option<PathBuf> {
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|dir| dir.is_absolute()).or(home);
    cache.map(|dir| dir.join("silicide/kernels"))
}

/// What a back end does: memory and queues.
pub(crate) trait Executor: Send + Sync {
    fn kind(&self) -> DeviceKind;
    fn description(&self) -> String;
    /// Zeroed memory, aligned to 64 bytes at least.
    fn allocate(&self, len: usize) -> Result<Memory>;
    /// Host bytes as device memory without a copy, where the device can.
    fn adopt(&self, bytes: &Arc<dyn HostBytes>) -> Result<Option<Memory>>;
    fn queue(&self) -> Box<dyn Queue>;
    /// Whether the host reaches the device's memory by the same addresses.
    fn shares_memory(&self) -> bool {
        true
    }
    /// Copies host bytes to memory that is not shared, after all work given so far.
    fn upload(&self, _: &Memory, _offset: usize, _: &[u8]) -> Result<()> {
        unreachable!("the memory is shared")
    }
    /// Copies bytes of memory that is not shared to the host, after all work given so far.
    fn download(&self, _: &Memory, _offset: usize, _: &mut [u8]) -> Result<()> {
        unreachable!("the memory is shared")
    }
    fn free_memory(&self) -> Option<usize> {
        None
    }
    fn compute_capability(&self) -> Option<(u32, u32)> {
        None
    }
    /// See [`Device::processors`].
    fn processors(&self) -> Option<u32> {
        None
    }
    /// See [`Device::takes_nvidia_kernels`].
    fn takes_nvidia_kernels(&self) -> bool {
        false
    }
    /// See [`Device::nvidia_threadgroup_memory`].
    fn nvidia_threadgroup_memory(&self) -> u32 {
        0
    }
    fn as_cpu(&self) -> Option<&cpu::Cpu> {
        None
    }
}

/// Where a stream's launches go. Launches between two barriers may run in any order and at once.
pub(crate) trait Queue: Send {
    fn launch(&mut self, launch: &Launch) -> Result<()>;
    /// Everything launched before is done before anything launched after begins.
    fn barrier(&mut self) -> Result<()>;
    /// Returns when everything launched is done.
    fn finish(&mut self) -> Result<()>;

    fn replay(&mut self, plan: &Plan) -> Result<()> {
        for (launch, barrier) in plan.steps() {
            if barrier {
                self.barrier()?;
            }
            self.launch(launch)?;
        }
        Ok(())
    }
}
