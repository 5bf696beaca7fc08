//! Rows by `memcpy`, elements one by one.

use super::Params;
use crate::Element;
use crate::device::cpu::Call;
use crate::ops::walk::map;

pub(super) fn run<T: Element>(call: &Call) {
    let p: Params = call.params();
    let walk = p.walk;
    let (x, ids, out) = (call.bits::<T>(0), call.view::<u32>(1), call.bits::<T>(2));
    let [sx, si, so] = [0, 1, 2].map(|operand| walk.stride(operand));
    let row = |id: u32| (id < p.axis_len).then_some(id as usize * p.axis_stride as usize);
    walk.for_each_run(call.pool, usize::MAX, |at, len| {
        // SAFETY: the output is apart from the inputs, and a run of it is written by one task.
        unsafe {
            if (si, so) == (1, 1) {
                for (i, (out, &id)) in out.row_mut(at[2], len).iter_mut().zip(ids.row(at[1], len)).enumerate() {
                    *out = row(id).map_or(T::zeroed(), |from| x.get(at[0] + from + i * sx));
                }
                return;
            }
            if si != 0 {
                for i in 0..len {
                    let element = row(ids.get(at[1] + i * si)).map_or(T::zeroed(), |from| x.get(at[0] + from + i * sx));
                    out.set(at[2] + i * so, element);
                }
                return;
            }
            match row(ids.get(at[1])) {
                Some(from) if (sx, so) == (1, 1) => {
                    out.row_mut(at[2], len).copy_from_slice(x.row(at[0] + from, len));
                }
                Some(from) => map((x, at[0] + from, sx), (out, at[2], so), len, |x| x),
                None => (0..len).for_each(|i| out.set(at[2] + i * so, T::zeroed())),
            }
        }
    });
}
