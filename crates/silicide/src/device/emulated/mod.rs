//! The emulated executors: the same kernels as on an Apple or NVIDIA GPU, run on the host by `silicide-msl`.
//!
//! Launches between two barriers are collected and run in a shuffled order, so that a barrier that the stream forgot
//! shows as a wrong result here and not only on a real GPU.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use silicide_msl::{BufferArg, CompileOptions, Kernel, Library, Schedule};

use super::buffer::Memory;
use super::launch::{Arg, Body, Gpu, Launch, LockSet};
use super::{DeviceKind, Executor, HostBytes, Queue, default_cache_dir};
use crate::{Error, Result};

/// How an emulated device runs.
#[derive(Clone, Debug)]
pub struct EmulatedOptions {
    /// Checks every memory access, hunts for races and finds divergent barriers; slower.
    pub checks: bool,
    /// Shuffles the order of threads, threadgroups and independent launches by this seed; None runs them in order.
    pub seed: Option<u64>,
    /// Where compiled kernels are kept between runs; None keeps them in memory only.
    pub cache_dir: Option<PathBuf>,
}

impl Default for EmulatedOptions {
    fn default() -> Self {
        EmulatedOptions { checks: false, seed: None, cache_dir: default_cache_dir() }
    }
}

pub(super) struct Emulated {
    shared: Arc<Shared>,
}

struct Shared {
    kind: DeviceKind,
    options: EmulatedOptions,
    /// By source, and what was put before it.
    libraries: Mutex<HashMap<(&'static str, String), Library>>,
}

impl Emulated {
    /// `kind` is one of the two.
    pub(super) fn new(kind: DeviceKind, options: EmulatedOptions) -> Result<Emulated> {
        silicide_msl::find_compiler()
            .map_err(|e| Error::Device { device: kind.name().into(), message: e.to_string() })?;
        Ok(Emulated { shared: Arc::new(Shared { kind, options, libraries: Mutex::default() }) })
    }
}

impl Executor for Emulated {
    fn kind(&self) -> DeviceKind {
        self.shared.kind
    }

    fn description(&self) -> String {
        let checks = if self.shared.options.checks { "every access checked" } else { "unchecked" };
        let whose = if self.takes_nvidia_kernels() { "NVIDIA" } else { "Metal" };
        format!("{whose} kernels run on the CPU, {checks}")
    }

    fn allocate(&self, len: usize) -> Result<Memory> {
        Memory::host(len).ok_or_else(|| Error::OutOfMemory { device: self.shared.kind.name().into(), wanted: len })
    }

    fn adopt(&self, bytes: &Arc<dyn HostBytes>) -> Result<Option<Memory>> {
        Ok(Some(Memory::adopted(bytes)))
    }

    fn queue(&self) -> Box<dyn Queue> {
        let order = self.shared.options.seed.unwrap_or_default();
        Box::new(EmulatedQueue { shared: self.shared.clone(), pending: Vec::new(), order })
    }

    fn takes_nvidia_kernels(&self) -> bool {
        self.shared.kind == DeviceKind::EmulatedCuda
    }

    fn compute_capability(&self) -> Option<(u32, u32)> {
        self.takes_nvidia_kernels().then_some((9, 0))
    }

    fn processors(&self) -> Option<u32> {
        // So few that threadgroups which stay find work.
        self.takes_nvidia_kernels().then_some(2)
    }

    fn nvidia_threadgroup_memory(&self) -> u32 {
        if self.takes_nvidia_kernels() { silicide_msl::MAX_NVIDIA_THREADGROUP_BYTES as u32 } else { 0 }
    }
}

impl Shared {
    fn kernel(&self, gpu: &Gpu) -> Result<Kernel> {
        let failed = |e: silicide_msl::Error| Error::Kernel { kernel: gpu.entry.clone(), message: e.to_string() };
        let mut libraries = self.libraries.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (gpu.source.name, gpu.defines.clone());
        if let Some(library) = libraries.get(&key) {
            return library.kernel(&gpu.entry).map_err(failed);
        }
        let options = CompileOptions {
            checks: self.options.checks,
            cache_dir: self.options.cache_dir.clone(),
            name: gpu.source.path(),
            nvidia: gpu.source.is_for_nvidia(),
            ..CompileOptions::default()
        };
        let library = Library::compile(&gpu.source.assemble(&gpu.defines), &options).map_err(failed)?;
        let kernel = library.kernel(&gpu.entry).map_err(failed);
        libraries.insert(key, library);
        kernel
    }
}

struct EmulatedQueue {
    shared: Arc<Shared>,
    /// Launched since the last barrier.
    pending: Vec<Pending>,
    /// State of the generator that orders them.
    order: u64,
}

struct Pending {
    kernel: Kernel,
    args: Vec<Arg>,
    params: Vec<u8>,
    threadgroup_memory: u32,
    threadgroups: [u32; 3],
    threads: [u32; 3],
}

impl EmulatedQueue {
    /// A number below `n`, by a linear congruence good enough to shuffle with.
    fn below(&mut self, n: usize) -> usize {
        self.order = self.order.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.order >> 33) as usize % n
    }

    fn run(&self, launch: &Pending) -> Result<()> {
        let options = &self.shared.options;
        let buffers = launch.args.iter().zip(0u32..).map(|(arg, index)| {
            // SAFETY: the range was checked against the storage when the tensor was made.
            let ptr = unsafe { arg.storage.memory.ptr.as_ptr().add(arg.bytes.start) };
            (index, BufferArg { ptr, len: arg.bytes.len(), writable: arg.access.writes() })
        });
        let memory =
            (launch.threadgroup_memory > 0).then(|| (0, launch.threadgroup_memory.next_multiple_of(16) as usize));
        let memory = memory.into_iter();
        let locks = LockSet::new(launch.args.iter());
        let _held = locks.hold();
        let launch = silicide_msl::Launch {
            kernel: &launch.kernel,
            buffers: buffers.collect(),
            bytes: vec![(launch.args.len() as u32, &launch.params)],
            threadgroup_memory: memory.collect(),
            threadgroups: launch.threadgroups,
            threads: launch.threads,
            // One worker makes a run with a seed repeatable.
            schedule: Schedule { seed: options.seed, workers: usize::from(options.checks), steps: None },
        };
        // SAFETY: the buffers are alive and locked, and their lengths are those of the views.
        unsafe { launch.run() }
            .map_err(|e| Error::Kernel { kernel: launch.kernel.info().name.clone(), message: e.to_string() })
    }
}

impl Queue for EmulatedQueue {
    fn launch(&mut self, launch: &Launch) -> Result<()> {
        let Body::Gpu(gpu) = &launch.body else { unreachable!("the stream gives a GPU queue GPU launches") };
        self.pending.push(Pending {
            kernel: self.shared.kernel(gpu)?,
            args: launch.args.clone(),
            params: launch.params.clone(),
            threadgroup_memory: launch.threadgroup_memory,
            threadgroups: gpu.threadgroups,
            threads: gpu.threads,
        });
        Ok(())
    }

    fn barrier(&mut self) -> Result<()> {
        let mut pending = std::mem::take(&mut self.pending);
        if self.shared.options.seed.is_some() {
            for i in (1..pending.len()).rev() {
                pending.swap(i, self.below(i + 1));
            }
        }
        pending.iter().try_for_each(|launch| self.run(launch))
    }

    fn finish(&mut self) -> Result<()> {
        self.barrier()
    }
}
