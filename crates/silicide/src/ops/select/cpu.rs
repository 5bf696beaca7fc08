//! A block at a time; bits of one size are moved, whatever their type.

use super::Params;
use crate::Element;
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::vector::vectorized;
use crate::device::cpu::{Call, View};
use crate::ops::walk::BLOCK;

/// The bits of an element.
pub(super) trait Bits: Element {
    /// From those of a number.
    fn of(bits: u64) -> Self;
    /// Without a branch, as vectors have it.
    fn choose(flag: u8, a: Self, b: Self) -> Self;
}

macro_rules! bits {
    ($($t:ty),*) => {
        $(impl Bits for $t {
            fn of(bits: u64) -> $t {
                bits as $t
            }
            #[inline(always)]
            fn choose(flag: u8, a: $t, b: $t) -> $t {
                let mask = <$t>::from(flag == 0).wrapping_sub(1);
                a & mask | b & !mask
            }
        })*
    };
}
bits!(u8, u16, u32, i64);

pub(super) fn run<T: Bits>(call: &Call) {
    let p: Params = call.params();
    let walk = p.walk;
    let (condition, a, b, out) = (call.bits::<u8>(0), call.bits::<T>(1), call.bits::<T>(2), call.bits::<T>(3));
    let [sc, sa, sb, so] = [0, 1, 2, 3].map(|operand| walk.stride(operand));
    walk.for_each_run(call.pool, BLOCK, |at, len| {
        with_scratch(len, |flags: &mut [u8]| {
            with_scratch(2 * len, |scratch: &mut [T]| {
                let (x, y) = scratch.split_at_mut(len);
                // SAFETY: a run is read before the same run of the output is written, and by no other task.
                unsafe {
                    read(condition, at[0], sc, flags);
                    if p.has_a == 0 {
                        x.fill(T::of(p.a))
                    } else {
                        read(a, at[1], sa, x)
                    }
                    if p.has_b == 0 { y.fill(T::of(p.b)) } else { read(b, at[2], sb, y) }
                }
                vectorized(
                    #[inline(always)]
                    || {
                        for ((x, &y), &flag) in x.iter_mut().zip(y.iter()).zip(flags.iter()) {
                            *x = T::choose(flag, *x, y);
                        }
                    },
                );
                if so == 1 {
                    // SAFETY: as above.
                    unsafe { out.row_mut(at[3], len) }.copy_from_slice(x);
                } else {
                    // SAFETY: as above.
                    x.iter().enumerate().for_each(|(i, &x)| unsafe { out.set(at[3] + i * so, x) });
                }
            });
        });
    });
}

/// Copies elements `stride` apart from `at` on.
///
/// # Safety
///
/// Nothing writes them meanwhile.
unsafe fn read<T: Element>(from: View<T>, at: usize, stride: usize, out: &mut [T]) {
    match stride {
        // SAFETY: the caller's promise.
        1 => out.copy_from_slice(unsafe { from.row(at, out.len()) }),
        // SAFETY: the caller's promise.
        0 => out.fill(unsafe { from.get(at) }),
        // SAFETY: the caller's promise.
        _ => out.iter_mut().enumerate().for_each(|(i, o)| *o = unsafe { from.get(at + i * stride) }),
    }
}
