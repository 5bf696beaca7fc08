//! The CPU executor: launches run at once, on the host's threads.

mod features;
mod pool;
pub(crate) mod scratch;
pub(crate) mod simd;
pub(crate) mod vector;

use std::any::Any;
use std::marker::PhantomData;
use std::sync::Arc;

use bytemuck::Pod;

pub use self::features::{Features, Level};
pub use self::pool::Pool;
use super::buffer::Memory;
use super::host::Slabs;
use super::launch::{Arg, Body, Launch, LockSet};
use super::plan::Plan;
use super::{DeviceKind, Executor, HostBytes, Queue};
use crate::{DType, Element, Error, Result};

/// How the CPU device is used.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuOptions {
    /// Threads, the caller's included; 0 for one a core.
    pub threads: usize,
    /// Instruction sets that may be used; `None` for all that the processor has.
    pub features: Option<Features>,
}

/// The CPU form of an op: reads and writes what its [`Call`] names.
pub(crate) type Entry = fn(&Call);

pub(crate) struct Cpu {
    shared: Arc<Shared>,
}

struct Shared {
    pool: Pool,
    features: Features,
    slabs: Slabs,
}

impl Cpu {
    pub(super) fn new(options: CpuOptions) -> Cpu {
        let threads = match options.threads {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
            n => n,
        };
        let features = options.features.unwrap_or_else(Features::detect);
        Cpu { shared: Arc::new(Shared { pool: Pool::new(threads), features, slabs: Slabs::default() }) }
    }

    /// The instruction sets that kernels may use.
    pub(crate) fn features(&self) -> Features {
        self.shared.features
    }

    /// Zeroed memory for a weight, near that of other weights.
    pub(crate) fn allocate_weight(&self, len: usize) -> Result<Memory> {
        self.shared.slabs.take(len).ok_or_else(|| out_of_memory(len))
    }

    /// The threads that kernels run on.
    pub(crate) fn pool(&self) -> &Pool {
        &self.shared.pool
    }
}

impl Executor for Cpu {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Cpu
    }

    fn description(&self) -> String {
        format!("{} threads, {}", self.shared.pool.threads(), self.shared.features)
    }

    fn allocate(&self, len: usize) -> Result<Memory> {
        Memory::host(len).ok_or_else(|| out_of_memory(len))
    }

    fn adopt(&self, bytes: &Arc<dyn HostBytes>) -> Result<Option<Memory>> {
        Ok(Some(Memory::adopted(bytes)))
    }

    fn queue(&self) -> Box<dyn Queue> {
        Box::new(CpuQueue(self.shared.clone()))
    }

    fn as_cpu(&self) -> Option<&Cpu> {
        Some(self)
    }
}

fn out_of_memory(wanted: usize) -> Error {
    Error::OutOfMemory { device: "cpu".into(), wanted }
}

struct CpuQueue(Arc<Shared>);

impl CpuQueue {
    fn run(&self, launch: &Launch) {
        let Body::Cpu(entry) = launch.body else { unreachable!("the stream gives a CPU queue CPU launches") };
        entry(&Call {
            args: &launch.args,
            params: &launch.params,
            context: launch.context.as_deref(),
            pool: &self.0.pool,
            features: self.0.features,
        });
    }
}

impl Queue for CpuQueue {
    fn launch(&mut self, launch: &Launch) -> Result<()> {
        let locks = LockSet::new(launch.args.iter());
        let _held = locks.hold();
        self.run(launch);
        Ok(())
    }

    fn replay(&mut self, plan: &Plan) -> Result<()> {
        let _held = plan.locks().hold();
        for launch in plan.launches() {
            self.run(launch);
        }
        Ok(())
    }

    fn barrier(&mut self) -> Result<()> {
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}

/// What the CPU form of an op is called with. The buffers' locks are held for its length.
pub(crate) struct Call<'a> {
    args: &'a [Arg],
    params: &'a [u8],
    context: Option<&'a (dyn Any + Send + Sync)>,
    /// The threads to use.
    pub(crate) pool: &'a Pool,
    /// The instruction sets that may be used.
    pub(crate) features: Features,
}

impl<'a> Call<'a> {
    /// The parameter struct that the launch was made with.
    pub(crate) fn params<P: Pod>(&self) -> P {
        bytemuck::pod_read_unaligned(self.params)
    }

    /// What the launch was given besides parameters.
    pub(crate) fn context<T: Any>(&self) -> &'a T {
        self.context.and_then(|c| c.downcast_ref()).expect("the op gave its launch this context")
    }

    /// Rows of `len` elements that a task should have at least, for waking a thread to pay.
    pub(crate) fn grain(&self, len: usize) -> usize {
        const ELEMENTS: usize = 16 * 1024;
        ELEMENTS.div_ceil(len.max(1))
    }

    /// The elements of an argument that no output of the launch overlaps.
    pub(crate) fn slice<T: Element>(&self, arg: usize) -> &'a [T] {
        let view = self.view::<T>(arg);
        // SAFETY: inside the argument's bounds, aligned (the tensor was checked), and nothing writes it: launches whose
        // outputs overlap inputs are refused, but for ops that allow it, and those use `view`.
        unsafe { std::slice::from_raw_parts(view.ptr, view.len) }
    }

    /// The elements of an argument, gaps between strided rows included, for reading and writing row by row.
    pub(crate) fn view<T: Element>(&self, arg: usize) -> View<'a, T> {
        let arg = &self.args[arg];
        // Integers of one size may be read as one another: positions come as i32 or u32.
        let integers = !arg.dtype.is_float() && !T::DTYPE.is_float() && arg.dtype.size() == T::DTYPE.size();
        assert!(arg.bytes.is_empty() || arg.dtype == T::DTYPE || integers, "an op read {} as {}", arg.dtype, T::DTYPE);
        View::of(arg)
    }

    /// An argument's memory as elements of `T`, whatever its own type: for moving bits.
    pub(crate) fn bits<T: Element>(&self, arg: usize) -> View<'a, T> {
        View::of(&self.args[arg])
    }

    /// The element type of an argument.
    pub(crate) fn dtype(&self, arg: usize) -> DType {
        self.args[arg].dtype
    }
}

/// An argument's elements, shared by the tasks of a launch.
#[derive(Clone, Copy)]
pub(crate) struct View<'a, T> {
    ptr: *mut T,
    len: usize,
    _life: PhantomData<&'a T>,
}

// SAFETY: plain elements; which task touches which is stated at each `unsafe` call below.
unsafe impl<T: Element> Send for View<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Element> Sync for View<'_, T> {}

impl<'a, T: Element> View<'a, T> {
    fn of(arg: &'a Arg) -> View<'a, T> {
        // SAFETY: the range was checked against the storage when the tensor was made.
        let ptr = unsafe { arg.storage.memory.ptr.as_ptr().add(arg.bytes.start) }.cast::<T>();
        assert!(arg.bytes.is_empty() || ptr.is_aligned());
        View { ptr, len: arg.bytes.len() / size_of::<T>(), _life: PhantomData }
    }

    /// Memory that a launch's tasks share.
    pub(crate) fn over(memory: &'a mut [T]) -> View<'a, T> {
        View { ptr: memory.as_mut_ptr(), len: memory.len(), _life: PhantomData }
    }

    /// How many elements there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Element `i`.
    ///
    /// # Safety
    ///
    /// Nothing writes it meanwhile.
    #[inline(always)]
    pub(crate) unsafe fn get(&self, i: usize) -> T {
        assert!(i < self.len);
        // SAFETY: in bounds; the caller's promise.
        unsafe { *self.ptr.add(i) }
    }

    /// Replaces element `i`.
    ///
    /// # Safety
    ///
    /// Nothing else touches it meanwhile.
    #[inline(always)]
    pub(crate) unsafe fn set(&self, i: usize, x: T) {
        assert!(i < self.len);
        // SAFETY: in bounds; the caller's promise.
        unsafe { *self.ptr.add(i) = x }
    }

    /// The elements `start..start + len`, to read.
    ///
    /// # Safety
    ///
    /// Nothing writes them while the slice is used.
    pub(crate) unsafe fn row(&self, start: usize, len: usize) -> &'a [T] {
        assert!(start + len <= self.len);
        // SAFETY: in bounds; the caller's promise.
        unsafe { std::slice::from_raw_parts(self.ptr.add(start), len) }
    }

    /// The elements `start..start + len`, to write.
    ///
    /// # Safety
    ///
    /// No other task, and no other slice of this task, touches them while the slice is used.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn row_mut(&self, start: usize, len: usize) -> &'a mut [T] {
        assert!(start + len <= self.len);
        // SAFETY: in bounds; the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(start), len) }
    }
}
