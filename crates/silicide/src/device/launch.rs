//! One kernel launch, described for every back end at once.

use std::any::Any;
use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::buffer::Storage;
use super::cpu;
use crate::kernels::{KernelParams, KernelSource};
use crate::{DType, Error, Result, Tensor};

/// One launch: what runs, on which memory, at what cost.
///
/// Ops make these; [`Plan::launches`](super::Plan::launches) shows them.
pub struct Launch {
    pub(crate) op: &'static str,
    pub(crate) args: Vec<Arg>,
    pub(crate) params: Vec<u8>,
    pub(crate) cost: Cost,
    pub(crate) choice: Choice,
    /// Bytes of threadgroup memory besides what the kernel declares; only NVIDIA's kernels ask for any.
    pub(crate) threadgroup_memory: u32,
    /// Neighbouring threadgroups that run together and reach each other's memory; only NVIDIA's kernels ask for more than one.
    pub(crate) cluster: u32,
    pub(crate) tiles: Vec<Tiles>,
    pub(crate) body: Body,
    /// What the CPU form needs and plain parameters cannot hold, such as a packed weight's layout.
    pub(crate) context: Option<Arc<dyn Any + Send + Sync>>,
}

impl fmt::Debug for Launch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Launch")
            .field("op", &self.op)
            .field("cost", &self.cost)
            .field("choice", &self.choice)
            .finish_non_exhaustive()
    }
}

/// What a launch must move and compute, whatever kernel does it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes that must be read once.
    pub read: u64,
    /// Bytes that must be written once.
    pub written: u64,
    /// Floating-point operations, a multiply-add being two.
    pub flops: u64,
}

/// The kernel that was chosen for a launch, and why.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    /// The kernel's name, such as `cpu avx512-vnni` or a Metal entry point.
    pub kernel: Cow<'static, str>,
    /// Why this one and not a faster one; empty where there is only one.
    pub why: Cow<'static, str>,
}

/// The code of a launch, for the device that it was made for.
pub(crate) enum Body {
    None,
    Cpu(cpu::Entry),
    Gpu(Gpu),
}

/// The GPU form of a launch: an entry point of an op's `kernel.metal` and how many threads run it.
///
/// Tensors are bound in the order in which the launch names them, from `[[buffer(0)]]`; the parameters come next.
pub(crate) struct Gpu {
    pub(crate) source: &'static KernelSource,
    /// Lines put before the source, for sources compiled apart for each format; empty for most.
    pub(crate) defines: String,
    pub(crate) entry: String,
    /// Threadgroups by axis.
    pub(crate) threadgroups: [u32; 3],
    /// Threads in a threadgroup by axis.
    pub(crate) threads: [u32; 3],
}

/// A matrix in an argument of a launch, and the tiles in which NVIDIA's copy engine moves it. In threadgroup memory the
/// sixteen-byte chunks of row `r` of a tile lie at their place exclusive-or `r % 8` where rows have 128 bytes, and
/// exclusive-or `r / 2 % 4` where they have 64.
pub(crate) struct Tiles {
    /// Which of the [`TileMap`]s that the parameters begin with.
    pub(crate) map: usize,
    pub(crate) argument: usize,
    pub(crate) dtype: DType,
    pub(crate) rows: u32,
    pub(crate) columns: u32,
    /// Bytes from row to row, a multiple of 16, as the matrix's first byte is.
    pub(crate) stride: u64,
    pub(crate) tile_rows: u32,
    pub(crate) tile_columns: u32,
}

/// What a kernel gives to the copy engine; zeros until the executor fills it in.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct TileMap([u32; 32]);

impl KernelParams for TileMap {
    const DECLARATION: &'static str = "struct alignas(64) TileMap { ulong words[16]; };";
}

/// A tensor as a launch sees it: memory and the bytes of it that may be touched.
#[derive(Clone)]
pub(crate) struct Arg {
    pub(super) storage: Arc<Storage>,
    pub(super) bytes: Range<usize>,
    pub(crate) dtype: DType,
    pub(super) access: Access,
    /// Whether it is a broadcast view, which shows an element more than once.
    repeats: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    /// Reads what the launch must not write, in place or not: rows of one tensor for all rows of another.
    ReadApart,
    Write,
    /// Writes exactly where another argument of the launch is read, which the kernel allows.
    WriteInPlace,
    ReadWrite,
}

impl Access {
    pub(super) fn writes(self) -> bool {
        !matches!(self, Access::Read | Access::ReadApart)
    }
}

impl Arg {
    pub(super) fn storage_id(&self) -> usize {
        Arc::as_ptr(&self.storage) as usize
    }
}

impl Launch {
    pub(crate) fn new<P: KernelParams>(op: &'static str, params: &P) -> Launch {
        Launch {
            op,
            args: Vec::with_capacity(8),
            params: bytemuck::bytes_of(params).to_vec(),
            cost: Cost::default(),
            choice: Choice::default(),
            threadgroup_memory: 0,
            cluster: 1,
            tiles: Vec::new(),
            body: Body::None,
            context: None,
        }
    }

    /// Adds a tensor that is only read.
    pub(crate) fn read(self, t: &Tensor) -> Launch {
        self.arg(t, Access::Read)
    }

    /// Adds a tensor that is only written; it must not overlap another argument.
    pub(crate) fn write(self, t: &Tensor) -> Launch {
        self.arg(t, Access::Write)
    }

    /// Adds a tensor that is written and may be the very view that another argument reads.
    pub(crate) fn write_in_place(self, t: &Tensor) -> Launch {
        self.arg(t, Access::WriteInPlace)
    }

    /// Adds a tensor that is read and written.
    pub(crate) fn read_write(self, t: &Tensor) -> Launch {
        self.arg(t, Access::ReadWrite)
    }

    /// [`read`](Self::read), or an empty binding for a tensor that is not there.
    pub(crate) fn read_optional(self, t: Option<&Tensor>) -> Launch {
        match t {
            Some(t) => self.read(t),
            None => self.absent(),
        }
    }

    /// Adds a tensor that is read and that no output may lie over, not even in place; an empty binding for one that is
    /// not there.
    pub(crate) fn read_apart_optional(self, t: Option<&Tensor>) -> Launch {
        match t {
            Some(t) => self.arg(t, Access::ReadApart),
            None => self.absent(),
        }
    }

    /// [`write_in_place`](Self::write_in_place), or an empty binding for a tensor that is not there.
    pub(crate) fn write_in_place_optional(self, t: Option<&Tensor>) -> Launch {
        match t {
            Some(t) => self.write_in_place(t),
            None => self.absent(),
        }
    }

    /// Kernels cannot bind nothing: no bytes of the first argument stand for it.
    fn absent(mut self) -> Launch {
        let first = self.args.first().expect("an op's first tensor is never optional");
        let (storage, start) = (first.storage.clone(), first.bytes.start);
        self.args.push(Arg { storage, bytes: start..start, dtype: first.dtype, access: Access::Read, repeats: false });
        self
    }

    fn arg(mut self, t: &Tensor, access: Access) -> Launch {
        let size = (t.elements() * t.dtype().size()) as u64;
        if access != Access::Write && access != Access::WriteInPlace {
            self.cost.read += size;
        }
        if access.writes() {
            self.cost.written += size;
        }
        let repeats = (0..t.rank()).any(|i| t.shape()[i] > 1 && t.strides()[i] == 0);
        let storage = t.buffer().storage().clone();
        self.args.push(Arg { storage, bytes: t.byte_range(), dtype: t.dtype(), access, repeats });
        self
    }

    /// Gives the CPU form something more than parameters; see [`Call::context`](cpu::Call::context).
    pub(crate) fn context<T: Any + Send + Sync>(mut self, context: &Arc<T>) -> Launch {
        self.context = Some(context.clone());
        self
    }

    /// Says how many floating-point operations the mathematics needs.
    pub(crate) fn flops(mut self, flops: usize) -> Launch {
        self.cost.flops = flops as u64;
        self
    }

    /// Says how many bytes must be read, where it is less than whole tensors.
    pub(crate) fn reads_bytes(mut self, read: usize) -> Launch {
        self.cost.read = read as u64;
        self
    }

    /// Says how many bytes must be written, where it is less than whole tensors.
    pub(crate) fn writes_bytes(mut self, written: usize) -> Launch {
        self.cost.written = written as u64;
        self
    }

    /// Gives the kernel threadgroup memory whose size it does not declare.
    pub(crate) fn threadgroup_memory(mut self, bytes: u32) -> Launch {
        self.threadgroup_memory = bytes;
        self
    }

    /// Has so many neighbouring threadgroups run together.
    pub(crate) fn cluster(mut self, threadgroups: u32) -> Launch {
        self.cluster = threadgroups;
        self
    }

    /// Lets NVIDIA's copy engine move tiles of an argument.
    pub(crate) fn tiles(mut self, tiles: Tiles) -> Launch {
        self.tiles.push(tiles);
        self
    }

    /// Names the kernel chosen and the reason.
    pub(crate) fn choice(mut self, kernel: impl Into<Cow<'static, str>>, why: impl Into<Cow<'static, str>>) -> Launch {
        self.choice = Choice { kernel: kernel.into(), why: why.into() };
        self
    }

    /// The op's public name.
    pub fn op(&self) -> &'static str {
        self.op
    }

    /// What it must move and compute.
    pub fn cost(&self) -> Cost {
        self.cost
    }

    /// The kernel chosen for it.
    pub fn chosen(&self) -> &Choice {
        &self.choice
    }

    /// The file of its kernel among those of the ops, such as `matmul/one.cu`; None on a CPU.
    pub fn source(&self) -> Option<String> {
        match &self.body {
            Body::Gpu(gpu) => Some(gpu.source.path()),
            Body::None | Body::Cpu(_) => None,
        }
    }

    /// Refuses memory of another device, writes to read-only memory, and outputs that overlap what they must not.
    pub(super) fn check(&self, device: &super::Device) -> Result<()> {
        for (i, arg) in self.args.iter().enumerate() {
            if arg.storage.device != *device {
                let message =
                    format!("argument {i} is on device {:?}, the stream on another {device:?}", arg.storage.device);
                return Err(Error::argument(self.op, message));
            }
            if !arg.access.writes() {
                continue;
            }
            if arg.storage.read_only {
                let message = format!("argument {i} is written, but its memory is read-only (a mapped file)");
                return Err(Error::argument(self.op, message));
            }
            if arg.repeats {
                let message =
                    format!("argument {i} is written, but it is a broadcast view, whose elements share memory");
                return Err(Error::argument(self.op, message));
            }
            for (j, other) in self.args.iter().enumerate() {
                let apart = i == j
                    || !Arc::ptr_eq(&arg.storage, &other.storage)
                    || arg.bytes.is_empty()
                    || other.bytes.is_empty()
                    || arg.bytes.end <= other.bytes.start
                    || other.bytes.end <= arg.bytes.start;
                let in_place = (arg.access == Access::WriteInPlace || other.access == Access::WriteInPlace)
                    && arg.bytes == other.bytes
                    && (arg.access == Access::Read || other.access == Access::Read);
                if !apart && !in_place {
                    let message = format!(
                        "argument {i} is written at bytes {:?}, where argument {j} lies ({:?}); give it memory of its own",
                        arg.bytes, other.bytes
                    );
                    return Err(Error::argument(self.op, message));
                }
            }
        }
        Ok(())
    }
}

/// The locks of every buffer that launches touch, each once, in one order for all threads.
pub(super) struct LockSet(Vec<(Arc<Storage>, bool)>);

impl LockSet {
    pub(super) fn new<'a>(args: impl Iterator<Item = &'a Arg>) -> LockSet {
        let mut locks: Vec<_> = args.map(|arg| (arg.storage.clone(), arg.access.writes())).collect();
        // Writers first among equals, so that dropping duplicates keeps the stronger.
        locks.sort_by_key(|(storage, write)| (Arc::as_ptr(storage) as usize, !write));
        locks.dedup_by_key(|(storage, _)| Arc::as_ptr(storage) as usize);
        LockSet(locks)
    }

    /// Takes the locks until the result is dropped.
    pub(super) fn hold(&self) -> Held<'_> {
        for (storage, write) in &self.0 {
            storage.lock.acquire(*write);
        }
        Held(self)
    }
}

pub(super) struct Held<'a>(&'a LockSet);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        for (storage, write) in &self.0.0 {
            storage.lock.release(*write);
        }
    }
}
