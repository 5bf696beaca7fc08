//! Runs of contiguous elements by `memcpy`, others one by one.

use super::Params;
use crate::Element;
use crate::device::cpu::Call;
use crate::ops::walk::map;

pub(super) fn run<T: Element>(call: &Call) {
    let Params { walk } = call.params();
    let (x, out) = (call.bits::<T>(0), call.bits::<T>(1));
    walk.for_each_run(call.pool, usize::MAX, |at, len| {
        // SAFETY: input and output are apart, and a run of the output is written by one task.
        unsafe {
            match (walk.stride(0), walk.stride(1)) {
                (1, 1) => out.row_mut(at[1], len).copy_from_slice(x.row(at[0], len)),
                (sx, so) => map((x, at[0], sx), (out, at[1], so), len, |x| x),
            }
        }
    });
}
