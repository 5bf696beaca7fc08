//! The CUDA executor: the same `kernel.metal` as on an Apple GPU, brought to NVRTC by `silicide-msl`.
//!
//! All work of a device goes through one stream of the driver, in order, so barriers are there already. A plan is captured
//! into a graph when it is first replayed.

mod compiler;
mod driver;

use std::collections::HashMap;
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use self::compiler::Compiler;
use self::driver::{Driver, Function, Graph, Lane};
use super::buffer::Memory;
use super::launch::{Arg, Body, Gpu, Launch};
use super::{DeviceKind, Executor, HostBytes, Plan, Queue, default_cache_dir};
use crate::{Error, Result};

#[cfg(test)]
pub(crate) use self::compiler::{compile, is_present};

/// How a CUDA device is used.
#[derive(Clone, Debug)]
pub struct CudaOptions {
    /// Which GPU, counted from 0 among those that the process sees.
    pub ordinal: usize,
    /// The most bytes of the GPU's memory that the device may take; None for all there is.
    pub memory_limit: Option<usize>,
    /// Where compiled kernels are kept between runs; None keeps them in memory only.
    pub cache_dir: Option<PathBuf>,
    /// Only the kernels that Apple's GPUs run too, none of those written for NVIDIA's: what these are checked against and have to outrun.
    pub shared_kernels: bool,
}

impl Default for CudaOptions {
    fn default() -> Self {
        CudaOptions { ordinal: 0, memory_limit: None, cache_dir: default_cache_dir(), shared_kernels: false }
    }
}

pub(super) struct Cuda {
    shared: Arc<Shared>,
}

struct Shared {
    driver: Arc<Driver>,
    compiler: Compiler,
    kernels: Mutex<HashMap<Key, Arc<Kernel>>>,
    /// Bytes taken now.
    taken: AtomicUsize,
    limit: usize,
    shared_kernels: bool,
}

/// What a kernel is compiled by: source, defines, entry, and the bound on threads.
type Key = (&'static str, String, String, u32);

struct Kernel {
    function: Function,
    /// Addresses that its argument begins with.
    buffers: usize,
}

/// Device memory; freed in the order of the stream.
struct Owner {
    address: u64,
    len: usize,
    shared: Arc<Shared>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        // SAFETY: whoever held the memory's storage has dropped it.
        unsafe { self.shared.driver.free(self.address) };
        self.shared.taken.fetch_sub(self.len, Ordering::Relaxed);
    }
}

impl Cuda {
    pub(super) fn new(options: CudaOptions) -> Result<Cuda> {
        let driver = Arc::new(Driver::open(options.ordinal)?);
        let compiler = Compiler::new(driver.capability, options.cache_dir)?;
        let limit = options.memory_limit.unwrap_or(usize::MAX);
        let (kernels, taken) = (Mutex::default(), AtomicUsize::new(0));
        let shared_kernels = options.shared_kernels;
        Ok(Cuda { shared: Arc::new(Shared { driver, compiler, kernels, taken, limit, shared_kernels }) })
    }
}

impl Executor for Cuda {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Cuda
    }

    fn description(&self) -> String {
        let Shared { driver, compiler, shared_kernels, .. } = &*self.shared;
        let (major, minor) = driver.capability;
        format!(
            "{}, {} processors, compute capability {major}.{minor}, {} MiB; driver for CUDA {}.{}, NVRTC {}.{}{}",
            driver.name,
            driver.processors,
            driver.total_memory >> 20,
            driver.version / 1000,
            driver.version % 1000 / 10,
            compiler.version.0,
            compiler.version.1,
            if *shared_kernels { "; shared kernels alone" } else { "" },
        )
    }

    fn allocate(&self, len: usize) -> Result<Memory> {
        let shared = &self.shared;
        let bytes = len.max(1);
        let taken = shared.taken.fetch_add(bytes, Ordering::Relaxed);
        let address = match taken.checked_add(bytes).is_some_and(|all| all <= shared.limit) {
            true => shared.driver.allocate(bytes),
            false => Err(Error::OutOfMemory { device: "cuda, by its memory limit".into(), wanted: len }),
        };
        let address = address.inspect_err(|_| {
            shared.taken.fetch_sub(bytes, Ordering::Relaxed);
        })?;
        let owner = Owner { address, len: bytes, shared: shared.clone() };
        let ptr = NonNull::new(address as *mut u8).ok_or_else(|| driver::failed("memory at address 0"))?;
        Ok(Memory { ptr, len, owner: Box::new(owner) })
    }

    fn adopt(&self, _: &Arc<dyn HostBytes>) -> Result<Option<Memory>> {
        Ok(None)
    }

    fn shares_memory(&self) -> bool {
        false
    }

    fn upload(&self, memory: &Memory, offset: usize, bytes: &[u8]) -> Result<()> {
        assert!(offset + bytes.len() <= memory.len, "the range was checked against the buffer");
        // SAFETY: as asserted.
        unsafe { self.shared.driver.upload(memory.ptr.as_ptr() as u64 + offset as u64, bytes) }
    }

    fn download(&self, memory: &Memory, offset: usize, out: &mut [u8]) -> Result<()> {
        assert!(offset + out.len() <= memory.len, "the range was checked against the buffer");
        // SAFETY: as asserted.
        unsafe { self.shared.driver.download(memory.ptr.as_ptr() as u64 + offset as u64, out) }
    }

    fn free_memory(&self) -> Option<usize> {
        let left = self.shared.limit.saturating_sub(self.shared.taken.load(Ordering::Relaxed));
        self.shared.driver.free_memory().ok().map(|free| free.min(left))
    }

    fn compute_capability(&self) -> Option<(u32, u32)> {
        Some(self.shared.driver.capability)
    }

    fn processors(&self) -> Option<u32> {
        Some(self.shared.driver.processors)
    }

    fn takes_nvidia_kernels(&self) -> bool {
        !self.shared.shared_kernels
    }

    fn nvidia_threadgroup_memory(&self) -> u32 {
        self.shared.driver.threadgroup_memory
    }

    fn queue(&self) -> Box<dyn Queue> {
        Box::new(CudaQueue { shared: self.shared.clone() })
    }
}

impl Shared {
    fn kernel(&self, gpu: &Gpu) -> Result<Arc<Kernel>> {
        // A bound on threads lets the compiler use more registers; up to 128 by powers of two, so that few kernels are compiled
        // twice.
        let threads = gpu.threads.iter().product::<u32>();
        let threads = if threads > 128 { threads.next_multiple_of(128) } else { threads.next_power_of_two().max(32) };
        let key = (gpu.source.name, gpu.defines.clone(), gpu.entry.clone(), threads);
        let kernels = || self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = kernels().get(&key) {
            return Ok(kernel.clone());
        }
        // Other threads compile other kernels meanwhile; of two that make the same one, the first is kept.
        let (kernel, cubin) = self.compiler.compile(gpu, threads)?;
        let function = self.driver.load(&cubin, &kernel.symbol)?;
        let kernel = Arc::new(Kernel { function, buffers: kernel.buffers as usize });
        Ok(kernels().entry(key).or_insert(kernel).clone())
    }

    fn launch(&self, lane: &Lane, launch: &Launch) -> Result<()> {
        let Body::Gpu(gpu) = &launch.body else { unreachable!("the stream gives a GPU queue GPU launches") };
        let kernel = self.kernel(gpu)?;
        if kernel.buffers > launch.args.len() {
            let message = format!("it takes {} tensors, the launch has {}", kernel.buffers, launch.args.len());
            return Err(Error::Kernel { kernel: gpu.entry.clone(), message });
        }
        let address = |arg: &Arg| arg.storage.memory.ptr.as_ptr() as u64 + arg.bytes.start as u64;
        let mut arguments = [0u64; 192];
        for (slot, arg) in arguments.iter_mut().zip(&launch.args[..kernel.buffers]) {
            *slot = address(arg);
        }
        // Maps of tiles begin on 64 bytes.
        let start = if launch.tiles.is_empty() { kernel.buffers } else { kernel.buffers.next_multiple_of(8) };
        let constants = &mut bytemuck::cast_slice_mut::<_, u8>(&mut arguments[start..])[..launch.params.len()];
        constants.copy_from_slice(&launch.params);
        for tiles in &launch.tiles {
            let map = self.driver.tile_map(address(&launch.args[tiles.argument]), tiles)?;
            constants[tiles.map * map.len()..][..map.len()].copy_from_slice(&map);
        }
        // SAFETY: the argument is the kernel's; the ranges were checked against their buffers when the tensors were made, and
        // buffers are freed in the order of the stream.
        unsafe {
            let (shared, cluster) = (launch.threadgroup_memory, launch.cluster);
            self.driver.launch(lane, &kernel.function, gpu.threadgroups, gpu.threads, shared, cluster, &arguments)
        }
    }
}

struct CudaQueue {
    shared: Arc<Shared>,
}

impl Queue for CudaQueue {
    fn launch(&mut self, launch: &Launch) -> Result<()> {
        self.shared.launch(&self.shared.driver.lane, launch)
    }

    fn barrier(&mut self) -> Result<()> {
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        self.shared.driver.synchronize()
    }

    fn replay(&mut self, plan: &Plan) -> Result<()> {
        let graph = plan.compiled(|| {
            // Nothing may be compiled or loaded while launches are captured.
            for (launch, _) in plan.steps() {
                if let Body::Gpu(gpu) = &launch.body {
                    self.shared.kernel(gpu)?;
                }
            }
            self.shared.driver.capture(|lane| plan.steps().try_for_each(|(launch, _)| self.shared.launch(lane, launch)))
        })?;
        // SAFETY: the plan holds the memory of its launches.
        unsafe {
            graph.downcast_ref::<Graph>().expect("a plan is replayed on the device that it was recorded for").launch()
        }
    }
}
