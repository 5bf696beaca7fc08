//! Floats a block at a time, widened; integers one by one.

use super::{Compare, Params};
use crate::device::cpu::Call;
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::vector::vectorized;
use crate::ops::walk::{BLOCK, load};
use crate::{Element, Float};

fn operator(p: &Params) -> Compare {
    use Compare::*;
    let all = [Equal, NotEqual, Less, LessEqual, Greater, GreaterEqual];
    all.into_iter().find(|op| op.code() == p.op).expect("made from a Compare")
}

pub(super) fn floats<T: Float>(call: &Call) {
    match operator(&call.params()) {
        Compare::Equal => apply_floats::<T>(call, |a, b| a == b),
        Compare::NotEqual => apply_floats::<T>(call, |a, b| a != b),
        Compare::Less => apply_floats::<T>(call, |a, b| a < b),
        Compare::LessEqual => apply_floats::<T>(call, |a, b| a <= b),
        Compare::Greater => apply_floats::<T>(call, |a, b| a > b),
        Compare::GreaterEqual => apply_floats::<T>(call, |a, b| a >= b),
    }
}

fn apply_floats<T: Float>(call: &Call, f: impl Fn(f32, f32) -> bool + Sync) {
    let p: Params = call.params();
    let walk = p.walk;
    let (a, b, out) = (call.view::<T>(0), call.view::<T>(1), call.bits::<u8>(2));
    walk.for_each_run(call.pool, BLOCK, |at, len| {
        with_scratch(2 * len, |s| {
            vectorized(
                #[inline(always)]
                || {
                    let (x, y) = s.split_at_mut(len);
                    // SAFETY: the output is apart from the inputs, and a run of it is written by one task.
                    unsafe {
                        load(a, at[0], walk.stride(0), x);
                        match p.has_b {
                            0 => y.fill(p.scalar),
                            _ => load(b, at[1], walk.stride(1), y),
                        }
                        if walk.stride(2) == 1 {
                            let out = out.row_mut(at[2], len);
                            for ((o, x), y) in out.iter_mut().zip(x.iter()).zip(y.iter()) {
                                *o = f(*x, *y).into();
                            }
                        } else {
                            let pairs = x.iter().zip(y.iter()).enumerate();
                            pairs.for_each(|(i, (&x, &y))| out.set(at[2] + i * walk.stride(2), f(x, y).into()));
                        }
                    }
                },
            )
        });
    });
}

/// Integers by way of the widest.
pub(super) trait Integer: Element + Ord {
    fn of(x: i64) -> Self;
}

macro_rules! integers {
    ($($t:ty),*) => {
        $(impl Integer for $t {
            fn of(x: i64) -> $t {
                x as $t
            }
        })*
    };
}
integers!(u8, i8, u16, u32, i32, i64);

pub(super) fn integers<T: Integer>(call: &Call) {
    match operator(&call.params()) {
        Compare::Equal => apply_integers::<T>(call, |a, b| a == b),
        Compare::NotEqual => apply_integers::<T>(call, |a, b| a != b),
        Compare::Less => apply_integers::<T>(call, |a, b| a < b),
        Compare::LessEqual => apply_integers::<T>(call, |a, b| a <= b),
        Compare::Greater => apply_integers::<T>(call, |a, b| a > b),
        Compare::GreaterEqual => apply_integers::<T>(call, |a, b| a >= b),
    }
}

fn apply_integers<T: Integer>(call: &Call, f: impl Fn(T, T) -> bool + Sync) {
    let p: Params = call.params();
    let walk = p.walk;
    let (a, b, out) = (call.view::<T>(0), call.view::<T>(1), call.bits::<u8>(2));
    let [sa, sb, so] = [0, 1, 2].map(|operand| walk.stride(operand));
    let number = T::of(p.integer);
    walk.for_each_run(call.pool, usize::MAX, |at, len| {
        vectorized(
            #[inline(always)]
            || {
                for i in 0..len {
                    // SAFETY: the output is apart from the inputs, and a run of it is written by one task.
                    unsafe {
                        let y = if p.has_b == 0 { number } else { b.get(at[1] + i * sb) };
                        out.set(at[2] + i * so, f(a.get(at[0] + i * sa), y).into());
                    }
                }
            },
        );
    });
}
