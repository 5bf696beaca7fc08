//! Keys and values, wherever their layout has them.
#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "pointers are into scratch whose sizes `run` sets; keys and values are checked"
)]

use std::ops::Range;

use half::{bf16, f16};

use super::Params;
use crate::device::cpu::simd::{LANES, Simd};
use crate::device::cpu::{Call, View};
use crate::{DType, Float};

/// Keys or values of any floating-point type.
pub(super) struct Cache<'a> {
    bytes: View<'a, u8>,
    dtype: DType,
    /// Elements by token and by head.
    strides: [usize; 2],
    dim: usize,
    places: Places<'a>,
}

/// Where a position is.
enum Places<'a> {
    Rows,
    Ring { rows: usize },
    Pages { table: &'a [u32], size: usize, pages: u32, stride: usize },
}

impl<'a> Cache<'a> {
    pub(super) fn new(
        call: &Call<'a>,
        arg: usize,
        strides: [u32; 2],
        page_stride: u32,
        p: &Params,
        table: Option<&'a [u32]>,
    ) -> Cache<'a> {
        let places = match table {
            Some(table) => {
                Places::Pages { table, size: p.page_size as usize, pages: p.pages, stride: page_stride as usize }
            }
            None if p.ring != 0 => Places::Ring { rows: p.keys as usize },
            None => Places::Rows,
        };
        let (bytes, dtype) = (call.bits(arg), call.dtype(arg));
        Cache { bytes, dtype, strides: strides.map(|s| s as usize), dim: p.dim as usize, places }
    }

    /// The elements of a head of a token, given its position; None where its page is not there.
    #[inline(always)]
    pub(super) fn row(&self, position: usize, head: usize) -> Option<&[u8]> {
        let token = match self.places {
            Places::Rows => position * self.strides[0],
            Places::Ring { rows } => position % rows * self.strides[0],
            Places::Pages { table, size, pages, stride } => {
                let page = table[position / size];
                if page >= pages {
                    return None;
                }
                page as usize * stride + position % size * self.strides[0]
            }
        };
        let size = self.dtype.size();
        let at = token + head * self.strides[1];
        // SAFETY: nothing writes keys and values.
        Some(unsafe { self.bytes.row(at * size, self.dim * size) })
    }

    /// Whether some of the positions are not there.
    pub(super) fn has_holes(&self, positions: &Range<usize>) -> bool {
        let Places::Pages { table, size, pages, .. } = self.places else { return false };
        table[positions.start / size..positions.end.div_ceil(size)].iter().any(|&page| page >= pages)
    }

    /// Writes a row as `f32`, with zeros up to whole vectors, or all zeros for one that is not there.
    #[inline(always)]
    pub(super) unsafe fn widen<S: Simd>(&self, position: usize, head: usize, to: *mut f32) {
        let Some(row) = self.row(position, head) else {
            to.write_bytes(0, self.dim.next_multiple_of(LANES));
            return;
        };
        match self.dtype {
            DType::F16 => widen_row::<S, f16>(row, to),
            DType::BF16 => widen_row::<S, bf16>(row, to),
            _ => widen_row::<S, f32>(row, to),
        }
    }
}

/// The first sixteen elements of a row, or all that there are and zeros.
#[inline(always)]
unsafe fn load<S: Simd, C: Float>(row: &[u8]) -> S::F {
    if row.len() >= LANES * size_of::<C>() {
        return S::load_float(row.as_ptr(), C::DTYPE);
    }
    let mut all = [0u8; LANES * size_of::<f32>()];
    all[..row.len()].copy_from_slice(row);
    S::load_float(all.as_ptr(), C::DTYPE)
}

#[inline(always)]
unsafe fn widen_row<S: Simd, C: Float>(row: &[u8], to: *mut f32) {
    for (i, row) in row.chunks(LANES * size_of::<C>()).enumerate() {
        S::store(to.add(i * LANES), load::<S, C>(row));
    }
}
