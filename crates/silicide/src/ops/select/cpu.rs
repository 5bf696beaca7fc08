//! Bits of one size are moved, whatever their type.

use super::Params;
use crate::Element;
use crate::device::cpu::Call;
use crate::device::cpu::vector::vectorized;

/// An element's bits from those of a number.
pub(super) trait Bits: Element {
    fn of(bits: u64) -> Self;
}

macro_rules! bits {
    ($($t:ty),*) => {
        $(impl Bits for $t {
            fn of(bits: u64) -> $t {
                bits as $t
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
    let (number_a, number_b) = (T::of(p.a), T::of(p.b));
    let dense = p.has_a != 0 && p.has_b != 0 && [sc, sa, sb] == [1; 3];
    walk.for_each_run(call.pool, usize::MAX, |at, len| {
        vectorized(
            #[inline(always)]
            || {
                // SAFETY: an element is read before the same one of the output is written, and by no other task.
                unsafe {
                    if dense {
                        let condition = condition.row(at[0], len);
                        for (i, &c) in condition.iter().enumerate() {
                            let (x, y) = (a.get(at[1] + i), b.get(at[2] + i));
                            out.set(at[3] + i * so, if c != 0 { x } else { y });
                        }
                        return;
                    }
                    for i in 0..len {
                        let x = match condition.get(at[0] + i * sc) {
                            0 if p.has_b == 0 => number_b,
                            0 => b.get(at[2] + i * sb),
                            _ if p.has_a == 0 => number_a,
                            _ => a.get(at[1] + i * sa),
                        };
                        out.set(at[3] + i * so, x);
                    }
                }
            },
        );
    });
}
