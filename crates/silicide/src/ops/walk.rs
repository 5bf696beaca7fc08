//! Walking tensors of one shape together, whatever their strides.

use std::ops::Range;

use crate::device::cpu::{Pool, View, vector};
use crate::kernels::kernel_params;
use crate::ops::check::{check, size};
use crate::{Element, Float, MAX_RANK, Result, Tensor};

/// The most tensors that are walked together.
const OPERANDS: usize = 4;

/// Elements that one step of a CPU loop holds in scratch memory: they stay in the first-level cache.
pub(crate) const BLOCK: usize = 1024;

/// Elements that a task should have at least, for waking a thread to pay.
const GRAIN: usize = 32 * 1024;

kernel_params! {
    /// Up to four tensors of one shape as rows of an inner axis. Axes that every tensor can walk with one stride are
    /// merged, so that contiguous tensors are one row. Strides are in elements.
    pub(crate) struct Walk {
        /// By operand and outer axis: operand `i` has those from `8 * i`.
        strides: [u64; 32],
        /// Of the inner axis, by operand.
        inner: [u64; 4],
        /// Elements in a row.
        len: u64,
        /// The product of the outer axes.
        rows: u32,
        /// How many outer axes there are.
        outer: u32,
        /// The outer axes, outermost first.
        dims: [u32; 8],
    }
}

impl Walk {
    /// Walks elements in any grouping.
    ///
    /// The last tensor is the output. The shapes are equal, which the caller has checked.
    pub(crate) fn elements(op: &'static str, tensors: &[&Tensor]) -> Result<Walk> {
        Walk::new(op, tensors, false)
    }

    /// Walks rows of the last axis.
    pub(crate) fn rows(op: &'static str, tensors: &[&Tensor]) -> Result<Walk> {
        Walk::new(op, tensors, true)
    }

    fn new(op: &'static str, tensors: &[&Tensor], keep_last: bool) -> Result<Walk> {
        let (out, inputs) = tensors.split_last().expect("an op has an output");
        for input in inputs {
            let shared = input.buffer().is_same(out.buffer()) && input.byte_range() == out.byte_range();
            check(op, !shared || input.elements() == 0 || same_layout(input, out), || {
                format!("out: got the memory of an input in another order ({} and {})", out.strides(), input.strides())
            })?;
        }
        let shape = out.shape();
        let strides = |axis: usize| {
            let mut strides = [0; OPERANDS];
            for (s, t) in strides.iter_mut().zip(tensors) {
                *s = t.strides()[axis];
            }
            strides
        };
        // Innermost first.
        let mut axes: [(usize, [usize; OPERANDS]); MAX_RANK] = Default::default();
        let mut count = 0;
        for axis in (0..shape.rank()).rev() {
            let (dim, strides) = (shape[axis], strides(axis));
            let keep = keep_last && axis + 1 == shape.rank();
            if dim == 1 && !keep {
                continue;
            }
            let merge_from = if keep_last { 2 } else { 1 };
            match axes[..count].last_mut() {
                Some((d, s)) if count >= merge_from && (0..OPERANDS).all(|i| strides[i] == s[i] * *d) => *d *= dim,
                _ => {
                    axes[count] = (dim, strides);
                    count += 1;
                }
            }
        }
        if count == 0 {
            axes[0].0 = 1;
            count = 1;
        }
        let mut walk: Walk = bytemuck::Zeroable::zeroed();
        walk.len = axes[0].0 as u64;
        walk.inner = axes[0].1.map(|s| s as u64);
        walk.outer = count as u32 - 1;
        walk.rows = size(op, "rows", axes[1..count].iter().map(|a| a.0).product())?;
        for (i, (dim, strides)) in axes[1..count].iter().rev().enumerate() {
            walk.dims[i] = *dim as u32;
            for (operand, s) in strides.iter().enumerate() {
                walk.strides[operand * MAX_RANK + i] = *s as u64;
            }
        }
        Ok(walk)
    }

    /// Takes two elements of two operands for one of twice the size, where rows and gaps are even; whether it did.
    pub(crate) fn pair(&mut self) -> bool {
        let even = self.len.is_multiple_of(2) && self.strides.iter().all(|s| s.is_multiple_of(2));
        let paired = even && self.inner[..2] == [1, 1];
        if paired {
            self.len /= 2;
            self.strides.iter_mut().for_each(|s| *s /= 2);
        }
        paired
    }

    /// The element at which a row starts, by operand.
    pub(crate) fn start(&self, mut row: usize) -> [usize; OPERANDS] {
        let mut at = [0; OPERANDS];
        for axis in (0..self.outer as usize).rev() {
            let dim = self.dims[axis] as usize;
            for (operand, at) in at.iter_mut().enumerate() {
                *at += (row % dim) * self.strides[operand * MAX_RANK + axis] as usize;
            }
            row /= dim;
        }
        at
    }

    /// How many rows there are.
    pub(crate) fn row_count(&self) -> u32 {
        self.rows
    }

    /// Elements in a row.
    pub(crate) fn row_len(&self) -> usize {
        self.len as usize
    }

    /// The inner stride of an operand.
    pub(crate) fn stride(&self, operand: usize) -> usize {
        self.inner[operand] as usize
    }

    /// Whether rows are whole packets of `n` elements, which lie aligned in every operand: `tensors`, of which the walk
    /// was made.
    pub(crate) fn packets_align(&self, n: usize, tensors: &[&Tensor]) -> bool {
        let dense = self.inner[..tensors.len()].iter().all(|&s| s == 1);
        dense && self.len.is_multiple_of(n as u64) && tensors.iter().all(|t| t.vectors_align(n))
    }

    /// Calls `f` for pieces of rows of at most `most` elements, on as many threads as the work is worth: with the element
    /// at which the piece starts, by operand, and its length.
    pub(crate) fn for_each_run(&self, pool: &Pool, most: usize, f: impl Fn([usize; OPERANDS], usize) + Sync) {
        let (rows, len) = (self.rows as usize, self.len as usize);
        pool.parallel_ranges(rows * len, GRAIN, &|range| {
            let mut next = range.start;
            while next < range.end {
                let (row, i) = (next / len, next % len);
                let n = (len - i).min(range.end - next).min(most);
                let mut at = self.start(row);
                for (operand, at) in at.iter_mut().enumerate() {
                    *at += i * self.stride(operand);
                }
                f(at, n);
                next += n;
            }
        });
    }

    /// The outer axis along which the first operand is contiguous, where it is not along rows, but the second is.
    pub(crate) fn turned(&self) -> Option<usize> {
        let outer = self.outer as usize;
        let across = (0..outer).find(|&axis| self.strides[axis] == 1 && self.dims[axis] > 1);
        across.filter(|_| self.inner[0] != 1 && self.inner[1] == 1)
    }

    /// The walk through the other axes than an outer one, and the elements of that.
    pub(crate) fn without(&self, axis: usize) -> (Walk, usize) {
        let mut others = *self;
        let dim = std::mem::replace(&mut others.dims[axis], 1);
        others.rows /= dim;
        (others, dim as usize)
    }

    /// Calls `f` for pieces of at most `most` neighbours along an outer axis, with all their elements, on as many threads as the
    /// work is worth: with the element at which the first starts, by operand, and how many there are.
    pub(crate) fn for_each_slab(
        &self,
        pool: &Pool,
        axis: usize,
        most: usize,
        f: impl Fn([usize; OPERANDS], usize) + Sync,
    ) {
        let (others, dim) = self.without(axis);
        let pieces = dim.div_ceil(most);
        let grain = GRAIN / (self.len as usize * most).max(1);
        pool.parallel_ranges(others.rows as usize * pieces, grain, &|range| {
            for task in range {
                let first = task % pieces * most;
                let mut at = others.start(task / pieces);
                for (operand, at) in at.iter_mut().enumerate() {
                    *at += first * self.outer_stride(operand, axis);
                }
                f(at, most.min(dim - first));
            }
        });
    }

    /// The strides of the first two operands along outer axes that are longer than one.
    pub(crate) fn outer_strides(&self) -> impl Iterator<Item = usize> {
        let axes = (0..self.outer as usize).filter(|&axis| self.dims[axis] > 1);
        axes.flat_map(|axis| [0, 1].map(|operand| self.outer_stride(operand, axis)))
    }

    /// The stride of an operand along an outer axis.
    pub(crate) fn outer_stride(&self, operand: usize, axis: usize) -> usize {
        self.strides[operand * MAX_RANK + axis] as usize
    }

    /// Calls `f` for each row with its number and the element at which it starts, by operand, on as many threads as the
    /// work is worth.
    pub(crate) fn for_each_row(&self, pool: &Pool, f: impl Fn(usize, [usize; OPERANDS]) + Sync) {
        self.for_each_rows(pool, |range| range.for_each(|row| f(row, self.start(row))));
    }

    /// Calls `f` for ranges of rows, on as many threads as the work is worth.
    pub(crate) fn for_each_rows(&self, pool: &Pool, f: impl Fn(Range<usize>) + Sync) {
        let grain = GRAIN / self.len.max(1) as usize;
        pool.parallel_ranges(self.rows as usize, grain, &f);
    }

    /// Threadgroups, and threads in each, for kernels whose threads take packets of `n` elements by `Steps`.
    pub(crate) fn steps(&self, n: usize) -> ([u32; 3], [u32; 3]) {
        const THREADS: u64 = 256;
        /// Packets of a thread.
        const EACH: u64 = 2;
        let packets = self.len.div_ceil(n as u64);
        let across = packets.div_ceil(EACH).next_power_of_two().min(THREADS);
        let down = (THREADS / across).min((self.rows as u64).next_power_of_two());
        let groups = packets.div_ceil(EACH * across);
        ([groups as u32, self.rows.div_ceil(down as u32), 1], [across as u32, down as u32, 1])
    }

    /// Threadgroups, and threads in each, for kernels whose threads take some 4 elements of a row.
    pub(crate) fn grid(&self) -> ([u32; 3], [u32; 3]) {
        const THREADS: u64 = 256;
        let across = self.len.div_ceil(4).next_power_of_two().min(THREADS);
        let down = (THREADS / across).min((self.rows as u64).next_power_of_two());
        let groups = self.len.div_ceil(4 * across).min(u32::MAX as u64);
        ([groups as u32, self.rows.div_ceil(down as u32), 1], [across as u32, down as u32, 1])
    }
}

/// Whether the same index is at the same place in both.
fn same_layout(a: &Tensor, b: &Tensor) -> bool {
    a.dtype().size() == b.dtype().size() && (0..a.rank()).all(|i| a.shape()[i] == 1 || a.strides()[i] == b.strides()[i])
}

/// Widens elements `stride` apart from `at` on.
///
/// # Safety
///
/// Nothing writes them meanwhile.
#[inline(always)]
pub(crate) unsafe fn load<T: Float>(from: View<T>, at: usize, stride: usize, out: &mut [f32]) {
    match stride {
        // SAFETY: the caller's promise.
        1 => vector::widen(unsafe { from.row(at, out.len()) }, out),
        // SAFETY: the caller's promise.
        0 => out.fill(unsafe { from.get(at) }.to_f32()),
        _ => {
            for (i, o) in out.iter_mut().enumerate() {
                // SAFETY: the caller's promise.
                *o = unsafe { from.get(at + i * stride) }.to_f32();
            }
        }
    }
}

/// Rounds elements to places `stride` apart from `at` on.
///
/// # Safety
///
/// No other task touches them meanwhile.
#[inline(always)]
pub(crate) unsafe fn store<T: Float>(x: &[f32], to: View<T>, at: usize, stride: usize) {
    if stride == 1 {
        // SAFETY: the caller's promise.
        vector::narrow(x, unsafe { to.row_mut(at, x.len()) });
    } else {
        for (i, &x) in x.iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { to.set(at + i * stride, T::from_f32(x)) };
        }
    }
}

/// Writes `f` of each element of `from` to `to`, both strided.
///
/// # Safety
///
/// No other task touches the output's elements meanwhile, and nothing writes the input's but this, at the same places.
#[inline(always)]
pub(crate) unsafe fn map<S: Element, D: Element>(
    (from, from_at, from_stride): (View<S>, usize, usize),
    (to, to_at, to_stride): (View<D>, usize, usize),
    len: usize,
    f: impl Fn(S) -> D,
) {
    for i in 0..len {
        // SAFETY: the caller's promise.
        unsafe { to.set(to_at + i * to_stride, f(from.get(from_at + i * from_stride))) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, Device};

    #[test]
    fn merges_what_walks_alike() {
        let device = Device::cpu();
        let whole = device.zeros(DType::F32, [4, 3, 8]).unwrap();
        let out = device.zeros(DType::F32, [4, 3, 8]).unwrap();
        let walk = Walk::elements("test", &[&whole, &out]).unwrap();
        assert_eq!((walk.rows, walk.len, walk.outer), (1, 96, 0));
        let walk = Walk::rows("test", &[&whole, &out]).unwrap();
        assert_eq!((walk.rows, walk.len, walk.outer), (12, 8, 1));

        let halves = device.zeros(DType::F32, [4, 3, 16]).unwrap().slice(2, 8..16).unwrap();
        let walk = Walk::elements("test", &[&halves, &out]).unwrap();
        assert_eq!((walk.rows, walk.len, walk.outer), (12, 8, 1));
        assert_eq!(walk.start(5)[..2], [80, 40]);

        let turned = device.zeros(DType::F32, [8, 3, 4]).unwrap().permute(&[2, 1, 0]).unwrap();
        let walk = Walk::elements("test", &[&turned, &out]).unwrap();
        assert_eq!((walk.rows, walk.len, walk.outer), (12, 8, 2));
        assert_eq!((walk.stride(0), walk.stride(1)), (12, 1));
        assert_eq!(walk.start(4)[..2], [5, 32]);

        let bias = device.zeros(DType::F32, [8]).unwrap().broadcast_to([4, 3, 8]).unwrap();
        let walk = Walk::elements("test", &[&bias, &out]).unwrap();
        assert_eq!((walk.rows, walk.len), (12, 8));
        let scalar = device.zeros(DType::F32, []).unwrap();
        assert_eq!(Walk::rows("test", &[&scalar, &scalar]).unwrap().len, 1);
    }

    #[test]
    fn refuses_an_input_written_in_another_order() {
        let device = Device::cpu();
        let x = device.zeros(DType::F32, [4, 4]).unwrap();
        let turned = x.permute(&[1, 0]).unwrap();
        assert!(Walk::elements("test", &[&x, &x]).is_ok());
        assert!(Walk::elements("test", &[&turned, &x]).unwrap_err().to_string().contains("another order"));
    }

    #[test]
    fn runs_cover_every_element_once() {
        use std::sync::atomic::{AtomicU32, Ordering};
        let device = Device::cpu();
        let out = device.zeros(DType::U8, [7, 5, 9000]).unwrap();
        let walk = Walk::rows("test", &[&out]).unwrap();
        let seen: Vec<AtomicU32> = (0..out.elements()).map(|_| AtomicU32::new(0)).collect();
        walk.for_each_run(&Pool::new(2), 1000, |at, n| {
            assert!(n <= 1000);
            seen[at[0]..at[0] + n].iter().for_each(|s| _ = s.fetch_add(1, Ordering::Relaxed));
        });
        assert!(seen.iter().all(|s| s.load(Ordering::Relaxed) == 1));
    }
}
