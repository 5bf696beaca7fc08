//! The memory of a launch, laid out so that each view's bounds can be checked.

use std::ops::Range;

use crate::launch::{Launch, MAX_BINDINGS};
use crate::library::{BindingKind, Kernel, LoadedKernel};
use crate::memory::{Region, What};

/// Views up to this size are copied for checked launches, so that one view never begins where another ends.
const COPIED: usize = 1 << 20;

/// Bytes around copies and threadgroup allocations.
const GAP: usize = 256;

/// The addresses behind `[[buffer(n)]]`, the same for all workers.
pub(crate) struct Bindings {
    table: Vec<u64>,
    views: Vec<View>,
    /// What copies and inline bytes live in.
    _storage: Vec<Block>,
    threadgroup: Vec<(u32, usize)>,
    checks: bool,
}

struct View {
    index: u32,
    /// Where the kernel sees it.
    here: *mut u8,
    /// Where the launch's caller has it, if that is elsewhere.
    origin: Option<*mut u8>,
    len: usize,
    writable: bool,
}

/// Memory of 64-byte alignment.
struct Block(Vec<Line>);

#[derive(Clone)]
#[repr(align(64))]
struct Line(#[expect(dead_code, reason = "only its size and alignment count")] [u8; 64]);

impl Block {
    fn new(bytes: usize) -> Self {
        Block(vec![Line([0xff; 64]); bytes.div_ceil(64)])
    }

    fn start(&mut self) -> *mut u8 {
        self.0.as_mut_ptr().cast()
    }
}

impl Bindings {
    /// # Safety
    ///
    /// The launch's buffers must be valid.
    pub(crate) unsafe fn new(launch: &Launch<'_>, checks: bool) -> Self {
        let writes =
            |index: u32| {
                launch.kernel.info().bindings.iter().any(|binding| {
                    binding.index == index && matches!(binding.kind, BindingKind::Device { writable: true })
                })
            };
        let mut storage = Vec::new();
        let mut views: Vec<View> = launch
            .buffers
            .iter()
            .map(|(index, buffer)| View {
                index: *index,
                here: buffer.ptr,
                origin: None,
                len: buffer.len,
                writable: buffer.writable && writes(*index),
            })
            .collect();
        if checks {
            // SAFETY: the caller's promise.
            unsafe { separate(&mut views, &mut storage) };
        }
        for (index, bytes) in &launch.bytes {
            let mut block = Block::new(bytes.len() + 2 * GAP);
            // SAFETY: the block has room for the bytes after the gap.
            let here = unsafe {
                let here = block.start().add(GAP);
                here.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
                here
            };
            storage.push(block);
            views.push(View { index: *index, here, origin: None, len: bytes.len(), writable: false });
        }
        let mut table = vec![0; MAX_BINDINGS as usize];
        for view in &views {
            table[view.index as usize] = view.here as u64;
        }
        Bindings { table, views, _storage: storage, threadgroup: launch.threadgroup_memory.clone(), checks }
    }

    pub(crate) fn table(&self) -> *const u64 {
        self.table.as_ptr()
    }

    /// Memory that each worker has for itself.
    pub(crate) fn local(&self, kernel: &LoadedKernel) -> Local {
        let size = |bytes: usize| bytes.next_multiple_of(16) + GAP;
        let total = kernel.statics.iter().map(|s| size(s.bytes)).sum::<usize>()
            + self.threadgroup.iter().map(|(_, bytes)| size(*bytes)).sum::<usize>();
        let mut block = Block::new(total + GAP);
        let start = block.start() as u64;
        let mut at = start + GAP as u64;
        let mut place = |bytes: usize| {
            let here = at..at + bytes as u64;
            at += size(bytes) as u64;
            here
        };
        let mut regions = Vec::new();
        let mut statics = vec![0; kernel.statics.iter().map(|s| s.id + 1).max().unwrap_or(0)];
        for variable in &kernel.statics {
            let bytes = place(variable.bytes);
            statics[variable.id] = bytes.start;
            regions.push(Region { bytes, what: What::Variable, writable: true });
        }
        let mut table = vec![0; MAX_BINDINGS as usize];
        for &(index, length) in &self.threadgroup {
            let bytes = place(length);
            table[index as usize] = bytes.start;
            regions.push(Region { bytes, what: What::Threadgroup(index), writable: true });
        }
        Local { block, regions, table, statics, poisoned: self.checks }
    }

    /// Everything that a kernel may use on the worker with that memory.
    pub(crate) fn regions(&self, local: &Local, kernel: &Kernel) -> Vec<Region> {
        let internal = |bytes: Range<u64>| Region { bytes, what: What::Internal, writable: false };
        let words = |table: &[u64]| {
            let start = table.as_ptr() as u64;
            internal(start..start + size_of_val(table) as u64)
        };
        let views = self.views.iter().map(|view| Region {
            bytes: view.here as u64..view.here as u64 + view.len as u64,
            what: What::Buffer(view.index),
            writable: view.writable,
        });
        let tables = [&self.table, &local.table, &local.statics].map(|table| words(table));
        let image = internal(kernel.inner().image.clone());
        views.chain(local.regions.iter().cloned()).chain(tables).chain([image]).collect()
    }

    /// Copies what the kernel wrote back to the caller's memory.
    pub(crate) fn write_back(&mut self) {
        for view in self.views.iter().filter(|view| view.writable) {
            if let Some(origin) = view.origin {
                // SAFETY: the caller's buffer is valid for writes, the copy has the same length, and they are apart.
                unsafe { origin.copy_from_nonoverlapping(view.here, view.len) };
            }
        }
    }
}

/// Moves views into copies with gaps between them. Views that overlap stay together, at the same distances.
///
/// # Safety
///
/// The views must be valid.
unsafe fn separate(views: &mut [View], storage: &mut Vec<Block>) {
    views.sort_by_key(|view| view.here as usize);
    let mut at = 0;
    while at < views.len() {
        let start = views[at].here as usize;
        let mut end = start + views[at].len;
        let mut next = at + 1;
        while next < views.len() && (views[next].here as usize) < end {
            end = end.max(views[next].here as usize + views[next].len);
            next += 1;
        }
        if (1..=COPIED).contains(&(end - start)) {
            // The same alignment as before, so that a misaligned view stays one.
            let shift = GAP + start % 64;
            let mut block = Block::new(end - start + shift + GAP);
            // SAFETY: the views cover the range from start to end without a hole, and are valid.
            unsafe {
                let copy = block.start().add(shift);
                copy.copy_from_nonoverlapping(views[at].here, end - start);
                for view in &mut views[at..next] {
                    let here = copy.add(view.here as usize - start);
                    view.origin = Some(std::mem::replace(&mut view.here, here));
                }
            }
            storage.push(block);
        }
        at = next;
    }
}

/// Threadgroup memory and the tables of one worker.
pub(crate) struct Local {
    block: Block,
    regions: Vec<Region>,
    table: Vec<u64>,
    statics: Vec<u64>,
    poisoned: bool,
}

impl Local {
    pub(crate) fn table(&self) -> *const u64 {
        self.table.as_ptr()
    }

    pub(crate) fn statics(&self) -> *const u64 {
        self.statics.as_ptr()
    }

    /// Fills threadgroup memory with NaN, so that what is read before it is written shows.
    pub(crate) fn poison(&mut self) {
        if self.poisoned {
            self.block.0.fill(Line([0xff; 64]));
        }
    }
}
