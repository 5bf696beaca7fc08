//! A block at a time by its greatest key; the place is looked for only where a block is better than all before.

use super::Params;
use crate::Float;
use crate::device::cpu::Call;
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::vector::{max_order_key, order_key, vectorized};
use crate::ops::walk::{BLOCK, load};

pub(super) fn run<T: Float>(call: &Call) {
    let Params { walk, .. } = call.params();
    let (x, out) = (call.view::<T>(0), call.view::<u32>(2));
    let (len, stride) = (walk.row_len(), walk.stride(0));
    walk.for_each_row(call.pool, |row, at| {
        let (mut best, mut index) = (0, 0);
        with_scratch(BLOCK.min(len), |scratch| {
            for start in (0..len).step_by(BLOCK) {
                let s = &mut scratch[..BLOCK.min(len - start)];
                let key = vectorized(
                    #[inline(always)]
                    || {
                        // SAFETY: nothing writes the input.
                        unsafe { load(x, at[0] + start * stride, stride, s) };
                        max_order_key(s)
                    },
                );
                if key > best {
                    best = key;
                    index = start + s.iter().position(|&x| order_key(x) == key).expect("the key is of one of these");
                }
            }
        });
        // SAFETY: one task a row.
        unsafe { out.set(row, index as u32) };
    });
}
