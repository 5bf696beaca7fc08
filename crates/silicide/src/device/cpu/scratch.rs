//! Working memory that a thread keeps from call to call.

use std::cell::RefCell;

/// A cache line, and the widest vector.
#[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C, align(64))]
struct Line([u8; 64]);

thread_local! {
    /// Buffers not in use; the one used last is last.
    static FREE: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with `len` numbers of this thread's scratch memory, aligned to cache lines, with whatever they held.
/// Allocates only when a thread first needs so many. Calls may nest.
pub(crate) fn with_scratch<T: bytemuck::Pod, R>(len: usize, f: impl FnOnce(&mut [T]) -> R) -> R {
    let mut buffer = FREE.with_borrow_mut(Vec::pop).unwrap_or_default();
    let lines = (len * size_of::<T>()).div_ceil(size_of::<Line>());
    if buffer.len() < lines {
        buffer.resize(lines, bytemuck::Zeroable::zeroed());
    }
    let result = f(&mut bytemuck::cast_slice_mut(&mut buffer[..lines])[..len]);
    FREE.with_borrow_mut(|free| free.push(buffer));
    result
}
