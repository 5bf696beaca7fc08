//! Element by element.

use super::Params;
use crate::device::cpu::Call;
use crate::device::cpu::vector::vectorized;
use crate::{Element, Float};

/// An integer with the lower bits of another.
pub(super) trait Integer: Element {
    fn of(x: u64) -> Self;
}

macro_rules! integers {
    ($($t:ty),*) => {
        $(impl Integer for $t {
            #[inline(always)]
            fn of(x: u64) -> $t {
                x as $t
            }
        })*
    };
}
integers!(u8, u16, u32, i64);

pub(super) fn integers<T: Integer>(call: &Call) {
    let p: Params = call.params();
    fill(call, |i| T::of(p.start.wrapping_add(p.step.wrapping_mul(i))));
}

pub(super) fn floats<T: Float>(call: &Call) {
    let p: Params = call.params();
    fill(call, |i| T::from_f32(p.float_start + i as f32 * p.float_step));
}

/// Writes `f` of each element's number.
fn fill<T: Element>(call: &Call, f: impl Fn(u64) -> T + Sync) {
    let (walk, out) = (call.params::<Params>().walk, call.bits::<T>(0));
    let stride = walk.stride(0);
    walk.for_each_run(call.pool, usize::MAX, |at, len| {
        // Steps are for tensors of one axis alone, so that the place in memory says the number.
        let first = (at[0] / stride.max(1)) as u64;
        vectorized(
            #[inline(always)]
            || {
                if stride == 1 {
                    // SAFETY: a run is written by one task.
                    let out = unsafe { out.row_mut(at[0], len) };
                    out.iter_mut().enumerate().for_each(|(i, o)| *o = f(first + i as u64));
                } else {
                    // SAFETY: as above.
                    (0..len).for_each(|i| unsafe { out.set(at[0] + i * stride, f(first + i as u64)) });
                }
            },
        );
    });
}
