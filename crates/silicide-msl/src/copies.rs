//! Copies that run on beside the thread that asked for them, as NVIDIA's `cp.async` does.
//!
//! They are done as late as they may be: when the thread waits for them. What reads their memory sooner finds what was there before.

use std::collections::VecDeque;

/// The first `bytes` of `size`, then zeros.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Copy {
    pub(crate) to: u64,
    pub(crate) from: u64,
    pub(crate) bytes: u32,
    pub(crate) size: u32,
    /// The place in the kernel, or 0 where nothing is checked.
    pub(crate) pc: u64,
}

impl Copy {
    /// # Safety
    ///
    /// `from` must be valid for reads of `bytes`, `to` for writes of `size`.
    pub(crate) unsafe fn run(self) {
        let (bytes, size) = (self.bytes.min(self.size) as usize, self.size as usize);
        // SAFETY: the caller's promise.
        unsafe {
            let to = self.to as *mut u8;
            std::ptr::copy(self.from as *const u8, to, bytes);
            to.add(bytes).write_bytes(0, size - bytes);
        }
    }
}

/// What the threads of a threadgroup have asked for.
#[derive(Debug, Default)]
pub(crate) struct Copies(Vec<OfThread>);

#[derive(Clone, Debug, Default)]
struct OfThread {
    /// Of no group yet.
    open: VecDeque<Copy>,
    groups: VecDeque<VecDeque<Copy>>,
}

impl Copies {
    /// Another threadgroup: what nobody waited for is forgotten.
    pub(crate) fn begin_group(&mut self) {
        self.0.clear();
    }

    fn of(&mut self, thread: u16) -> &mut OfThread {
        let index = usize::from(thread);
        if self.0.len() <= index {
            self.0.resize(index + 1, OfThread::default());
        }
        &mut self.0[index]
    }

    pub(crate) fn push(&mut self, thread: u16, copy: Copy) {
        self.of(thread).open.push_back(copy);
    }

    pub(crate) fn end_group(&mut self, thread: u16) {
        let of = self.of(thread);
        of.groups.push_back(std::mem::take(&mut of.open));
    }

    /// The first that is left, in all groups but the last `more`.
    pub(crate) fn next(&mut self, thread: u16, more: u32) -> Option<Copy> {
        let groups = &mut self.of(thread).groups;
        while groups.len() > more as usize {
            if let Some(copy) = groups.front_mut()?.pop_front() {
                return Some(copy);
            }
            groups.pop_front();
        }
        None
    }
}
