//! What the runner and a compiled kernel share. The layouts are those of `shim/runtime.h`.

/// The layouts' version; a library with another one is not run.
pub(crate) const VERSION: u32 = 2;

/// A compiled entry point.
pub(crate) type EntryPoint = unsafe extern "C" fn(*const Thread);

/// The position of a thread, and the tables of addresses that its arguments come from.
#[repr(C)]
#[derive(Clone, Debug)]
pub(crate) struct Thread {
    pub(crate) buffers: *const u64,
    pub(crate) shared: *const u64,
    pub(crate) statics: *const u64,
    /// Not null: nothing runs, the sizes of the arguments are written here.
    pub(crate) query: *mut u64,
    pub(crate) thread_position_in_grid: [u32; 3],
    pub(crate) thread_position_in_threadgroup: [u32; 3],
    pub(crate) threadgroup_position_in_grid: [u32; 3],
    pub(crate) threads_per_threadgroup: [u32; 3],
    pub(crate) threadgroups_per_grid: [u32; 3],
    pub(crate) threads_per_grid: [u32; 3],
    pub(crate) thread_index_in_threadgroup: u32,
    pub(crate) thread_index_in_simdgroup: u32,
    pub(crate) simdgroup_index_in_threadgroup: u32,
    pub(crate) simdgroups_per_threadgroup: u32,
    pub(crate) threads_per_simdgroup: u32,
}

impl Thread {
    /// A thread at position 0 of nothing.
    pub(crate) fn empty() -> Self {
        Thread {
            buffers: std::ptr::null(),
            shared: std::ptr::null(),
            statics: std::ptr::null(),
            query: std::ptr::null_mut(),
            thread_position_in_grid: [0; 3],
            thread_position_in_threadgroup: [0; 3],
            threadgroup_position_in_grid: [0; 3],
            threads_per_threadgroup: [0; 3],
            threadgroups_per_grid: [0; 3],
            threads_per_grid: [0; 3],
            thread_index_in_threadgroup: 0,
            thread_index_in_simdgroup: 0,
            simdgroup_index_in_threadgroup: 0,
            simdgroups_per_threadgroup: 0,
            threads_per_simdgroup: 0,
        }
    }
}

/// What one thread asks the others of its simdgroup or threadgroup for. The answer replaces `value`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) op: u32,
    pub(crate) arg: u32,
    /// The return address of the call: the place in the kernel.
    pub(crate) pc: u64,
    pub(crate) value: [u32; 10],
}

pub(crate) const BARRIER: u32 = 0;
pub(crate) const SIMDGROUP_BARRIER: u32 = 1;
pub(crate) const REDUCE: u32 = 2;
pub(crate) const SHUFFLE: u32 = 3;
pub(crate) const BALLOT: u32 = 4;
pub(crate) const MULTIPLY: u32 = 5;
pub(crate) const MULTIPLY_16: u32 = 6;

/// `mem_flags` of a barrier.
pub(crate) const MEM_DEVICE: u32 = 1;
pub(crate) const MEM_THREADGROUP: u32 = 2;

/// The runner's functions, in the order of the compiled table.
#[repr(C)]
pub(crate) struct Runtime {
    pub(crate) collective: unsafe extern "C" fn(*mut Request),
    pub(crate) access: unsafe extern "C" fn(address: u64, size: u64, kind: u32, pc: u64),
    pub(crate) fault: unsafe extern "C" fn(kind: u32, value: i64, line: u32),
    pub(crate) lane: unsafe extern "C" fn() -> u32,
    /// `pc` is 0 where nothing is checked.
    pub(crate) copy: unsafe extern "C" fn(to: u64, from: u64, bytes: u32, size: u32, pc: u64),
    pub(crate) end_copies: unsafe extern "C" fn(),
    pub(crate) wait_for_copies: unsafe extern "C" fn(more: u32),
}
