//! Working memory that a thread keeps from call to call.

use std::cell::RefCell;

/// Sixty-four bytes, aligned so that a vector never straddles cache lines.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

thread_local! {
    /// Buffers not in use; the one used last is last.
    static FREE: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with a pointer to `bytes` bytes aligned to 64, of any contents.
pub(super) fn with_scratch<R>(bytes: usize, f: impl FnOnce(*mut u8) -> R) -> R {
    let mut buffer = FREE.with_borrow_mut(Vec::pop).unwrap_or_default();
    let lines = bytes.div_ceil(64);
    if buffer.len() < lines {
        buffer.resize(lines, Line([0; 64]));
    }
    let result = f(buffer.as_mut_ptr().cast());
    FREE.with_borrow_mut(|free| free.push(buffer));
    result
}
