//! A block of each row at a time, widened; integers one by one.

use super::{Binary, Params};
use crate::device::cpu::Call;
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::vector::vectorized;
use crate::ops::walk::{BLOCK, load, store};
use crate::{Element, Float};

pub(super) fn floats<T: Float>(call: &Call) {
    match operator(call) {
        Binary::Add => apply::<T>(call, |a, b| a + b),
        Binary::Sub => apply::<T>(call, |a, b| a - b),
        Binary::Mul => apply::<T>(call, |a, b| a * b),
        Binary::Div => apply::<T>(call, |a, b| a / b),
        // Where the first is NaN the comparison is false, where the second is the choice is it.
        Binary::Max => apply::<T>(call, |a, b| if a > b || a.is_nan() { a } else { b }),
        Binary::Min => apply::<T>(call, |a, b| if a < b || a.is_nan() { a } else { b }),
    }
}

fn operator(call: &Call) -> Binary {
    let code = call.params::<Params>().op;
    let all = [Binary::Add, Binary::Sub, Binary::Mul, Binary::Div, Binary::Max, Binary::Min];
    all.into_iter().find(|op| op.code() == code).expect("made from a Binary")
}

fn apply<T: Float>(call: &Call, f: impl Fn(f32, f32) -> f32 + Sync) {
    let p: Params = call.params();
    let walk = p.walk;
    let (a, b, out) = (call.view::<T>(0), call.view::<T>(1), call.view::<T>(2));
    walk.for_each_run(call.pool, BLOCK, |at, len| {
        with_scratch(2 * len, |s| {
            vectorized(
                #[inline(always)]
                || {
                    let (x, y) = s.split_at_mut(len);
                    // SAFETY: a run is read before the same run of the output is written, and by no other task.
                    unsafe {
                        load(a, at[0], walk.stride(0), x);
                        match p.has_b {
                            0 => y.fill(p.scalar),
                            _ => load(b, at[1], walk.stride(1), y),
                        }
                    }
                    for (x, y) in x.iter_mut().zip(y.iter()) {
                        *x = f(*x, *y);
                    }
                    // SAFETY: as above.
                    unsafe { store(x, out, at[2], walk.stride(2)) };
                },
            )
        });
    });
}

/// Integers whose arithmetic wraps.
pub(super) trait Integer: Element + Ord {
    fn from_bits(bits: u32) -> Self;
    fn apply(self, op: Binary, other: Self) -> Self;
}

macro_rules! integer {
    ($t:ty) => {
        impl Integer for $t {
            fn from_bits(bits: u32) -> $t {
                bits as $t
            }

            fn apply(self, op: Binary, other: $t) -> $t {
                match op {
                    Binary::Add => self.wrapping_add(other),
                    Binary::Sub => self.wrapping_sub(other),
                    Binary::Mul => self.wrapping_mul(other),
                    Binary::Div => unreachable!("refused before"),
                    Binary::Max => self.max(other),
                    Binary::Min => self.min(other),
                }
            }
        }
    };
}
integer!(i32);
integer!(u32);

pub(super) fn integers<T: Integer>(call: &Call) {
    let p: Params = call.params();
    let (walk, op) = (p.walk, operator(call));
    let (a, b, out) = (call.view::<T>(0), call.view::<T>(1), call.view::<T>(2));
    walk.for_each_run(call.pool, usize::MAX, |at, len| {
        for i in 0..len {
            // SAFETY: an element is read before the same one of the output is written, and by no other task.
            unsafe {
                let x = a.get(at[0] + i * walk.stride(0));
                let y = if p.has_b == 0 { T::from_bits(p.scalar_integer) } else { b.get(at[1] + i * walk.stride(1)) };
                out.set(at[2] + i * walk.stride(2), x.apply(op, y));
            }
        }
    });
}
