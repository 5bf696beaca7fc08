//! Rows that many threadgroups of a GPU share, a part each; `kernels/order.h` loads them.

/// Elements of a part.
pub(super) const PART: usize = 2048;

/// Threads that take a part of a row of `len` elements, eight each.
pub(super) fn threads(len: usize) -> u32 {
    len.clamp(1, PART).div_ceil(8).next_multiple_of(32) as u32
}
