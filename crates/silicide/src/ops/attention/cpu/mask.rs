//! What masks and missing pages hide, and what masks add.

use std::ops::Range;

use bytemuck::cast_slice;
use half::{bf16, f16};

use super::{PART, Params, Tile, Work};
use crate::DType;
use crate::device::cpu::simd::LANES;
use crate::device::cpu::vector::widen;
use crate::device::cpu::{Call, View};

/// What is added to the scores of a part, where anything is: negative infinity hides a key.
pub(super) struct Terms<'a> {
    /// [`PART`] a row.
    rows: &'a [f32],
    /// Rows of a tile that share one.
    share: usize,
    /// Whether no row sees any of each [`LANES`] keys.
    hidden: [bool; PART / LANES],
}

impl<'a> Terms<'a> {
    pub(super) fn new(work: &Work, tile: &Tile, keys: &Range<usize>, room: &'a mut [f32]) -> Option<Terms<'a>> {
        let share = match &work.mask {
            Some(mask) if mask.by_head() => 1,
            Some(_) => tile.group,
            None if work.k.has_holes(keys) => tile.rows,
            None => return None,
        };
        let rows = &mut room[..tile.rows.div_ceil(share) * PART];
        let mut hidden = [true; PART / LANES];
        let mut plain = true;
        for (i, terms) in rows.chunks_exact_mut(PART).enumerate() {
            let terms = &mut terms[..keys.len()];
            match &work.mask {
                Some(mask) => {
                    let row = i * share;
                    let head = tile.kv_head * tile.group + row % tile.group;
                    mask.terms(tile.first + row / tile.group, head, keys, terms);
                }
                None => {
                    for (term, key) in terms.iter_mut().zip(keys.clone()) {
                        *term = if work.k.row(key, tile.kv_head).is_some() { 0.0 } else { f32::NEG_INFINITY };
                    }
                }
            }
            plain &= terms.iter().all(|&t| t == 0.0);
            for (hidden, terms) in hidden.iter_mut().zip(terms.chunks(LANES)) {
                *hidden &= terms.iter().all(|&t| t == f32::NEG_INFINITY);
            }
        }
        (!plain).then_some(Terms { rows, share, hidden })
    }

    pub(super) fn row(&self, row: usize) -> &[f32] {
        &self.rows[row / self.share * PART..][..PART]
    }

    /// Whether no row sees any of some keys, counted from the part's first; whole [`LANES`] of them.
    pub(super) fn hide(&self, some: Range<usize>) -> bool {
        self.hidden[some.start / LANES..some.end.div_ceil(LANES)].iter().all(|&h| h)
    }
}

/// A mask of any type.
pub(super) struct MaskTensor<'a> {
    bytes: View<'a, u8>,
    dtype: DType,
    /// Elements by query and by head.
    strides: [usize; 2],
}

impl<'a> MaskTensor<'a> {
    pub(super) fn new(call: &Call<'a>, arg: usize, p: &Params) -> MaskTensor<'a> {
        MaskTensor { bytes: call.bits(arg), dtype: call.dtype(arg), strides: p.mask_strides.map(|s| s as usize) }
    }

    /// Whether heads have masks of their own.
    pub(super) fn by_head(&self) -> bool {
        self.strides[1] != 0
    }

    /// What it adds to the scores of some keys.
    pub(super) fn terms(&self, query: usize, head: usize, keys: &Range<usize>, to: &mut [f32]) {
        let size = self.dtype.size();
        let at = query * self.strides[0] + head * self.strides[1] + keys.start;
        // SAFETY: nothing writes a mask.
        let row = unsafe { self.bytes.row(at * size, keys.len() * size) };
        match self.dtype {
            DType::F32 => to.copy_from_slice(cast_slice(row)),
            DType::F16 => widen(cast_slice::<u8, f16>(row), to),
            DType::BF16 => widen(cast_slice::<u8, bf16>(row), to),
            _ => to.iter_mut().zip(row).for_each(|(t, &seen)| *t = if seen != 0 { 0.0 } else { f32::NEG_INFINITY }),
        }
    }
}
