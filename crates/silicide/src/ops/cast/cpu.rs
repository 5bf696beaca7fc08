//! A block at a time: widened to f32, or to i64 between integers, and converted from there.

use bytemuck::{Pod, Zeroable};
use half::{bf16, f16};

use super::Params;
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::vector::vectorized;
use crate::device::cpu::{Call, View};
use crate::ops::walk::{BLOCK, load, store};
use crate::{DType, Element, Float};

pub(super) fn run(call: &Call) {
    let walk = call.params::<Params>().walk;
    let (from, to) = (call.dtype(0), call.dtype(1));
    walk.for_each_run(call.pool, BLOCK, |at, len| {
        let (x, out) = ((0, at[0], walk.stride(0)), (1, at[1], walk.stride(1)));
        if from.is_float() || to.is_float() {
            with_scratch(len, |s| {
                vectorized(
                    #[inline(always)]
                    || {
                        load_floats(call, x, s);
                        store_floats(call, s, out);
                    },
                )
            });
        } else {
            with_scratch(len, |s| {
                load_integers(call, x, s);
                store_integers(call, s, out);
            });
        }
    });
}

/// Elements of an argument: its index, the first element, and the stride.
type Part = (usize, usize, usize);

/// An integer type, or bool.
trait Integer: Element {
    fn widen(self) -> i64;
    /// Keeps the lower bits; of a bool, whether any is set.
    fn narrow(x: i64) -> Self;
    /// Drops the fraction and stays in range.
    fn from_f32(x: f32) -> Self;
}

macro_rules! integers {
    ($($t:ty),*) => {
        $(impl Integer for $t {
            #[inline(always)]
            fn widen(self) -> i64 {
                self as i64
            }
            #[inline(always)]
            fn narrow(x: i64) -> $t {
                x as $t
            }
            #[inline(always)]
            fn from_f32(x: f32) -> $t {
                x as $t
            }
        })*
    };
}
integers!(u8, i8, u16, u32, i32, i64);

/// The byte of a bool.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(transparent)]
struct Flag(u8);

impl Element for Flag {
    const DTYPE: DType = DType::Bool;
}

impl Integer for Flag {
    #[inline(always)]
    fn widen(self) -> i64 {
        (self.0 != 0).into()
    }
    #[inline(always)]
    fn narrow(x: i64) -> Flag {
        Flag((x != 0).into())
    }
    #[inline(always)]
    fn from_f32(x: f32) -> Flag {
        Flag((x != 0.0).into())
    }
}

/// Calls a function for an integer type.
macro_rules! by_integer {
    ($dtype:expr, $f:ident($($arg:expr),*)) => {
        match $dtype {
            DType::U8 => $f::<u8>($($arg),*),
            DType::I8 => $f::<i8>($($arg),*),
            DType::U16 => $f::<u16>($($arg),*),
            DType::U32 => $f::<u32>($($arg),*),
            DType::I32 => $f::<i32>($($arg),*),
            DType::I64 => $f::<i64>($($arg),*),
            DType::Bool => $f::<Flag>($($arg),*),
            DType::F32 | DType::F16 | DType::BF16 => unreachable!("a float goes by way of f32"),
        }
    };
}

/// Calls `float` for a floating-point type, `integer` for another.
macro_rules! by_type {
    ($dtype:expr, $($arg:expr),*) => {
        match $dtype {
            DType::F32 => float::<f32>($($arg),*),
            DType::F16 => float::<f16>($($arg),*),
            DType::BF16 => float::<bf16>($($arg),*),
            other => by_integer!(other, integer($($arg),*)),
        }
    };
}

#[inline(always)]
fn load_floats(call: &Call, x: Part, out: &mut [f32]) {
    #[inline(always)]
    fn float<T: Float>(call: &Call, (arg, at, stride): Part, out: &mut [f32]) {
        // SAFETY: a run is read before the same run of the output is written, and by no other task.
        unsafe { load(call.view::<T>(arg), at, stride, out) }
    }
    #[inline(always)]
    fn integer<T: Integer>(call: &Call, (arg, at, stride): Part, out: &mut [f32]) {
        let view: View<T> = call.view(arg);
        for (i, o) in out.iter_mut().enumerate() {
            // SAFETY: as above.
            *o = unsafe { view.get(at + i * stride) }.widen() as f32;
        }
    }
    by_type!(call.dtype(x.0), call, x, out)
}

#[inline(always)]
fn store_floats(call: &Call, x: &[f32], out: Part) {
    #[inline(always)]
    fn float<T: Float>(call: &Call, x: &[f32], (arg, at, stride): Part) {
        // SAFETY: a run of the output is written by one task.
        unsafe { store(x, call.view::<T>(arg), at, stride) }
    }
    #[inline(always)]
    fn integer<T: Integer>(call: &Call, x: &[f32], (arg, at, stride): Part) {
        let view: View<T> = call.view(arg);
        for (i, &x) in x.iter().enumerate() {
            // SAFETY: as above.
            unsafe { view.set(at + i * stride, T::from_f32(x)) };
        }
    }
    by_type!(call.dtype(out.0), call, x, out)
}

fn load_integers(call: &Call, x: Part, out: &mut [i64]) {
    fn integer<T: Integer>(call: &Call, (arg, at, stride): Part, out: &mut [i64]) {
        let view: View<T> = call.view(arg);
        for (i, o) in out.iter_mut().enumerate() {
            // SAFETY: a run is read before the same run of the output is written, and by no other task.
            *o = unsafe { view.get(at + i * stride) }.widen();
        }
    }
    by_integer!(call.dtype(x.0), integer(call, x, out))
}

fn store_integers(call: &Call, x: &[i64], out: Part) {
    fn integer<T: Integer>(call: &Call, x: &[i64], (arg, at, stride): Part) {
        let view: View<T> = call.view(arg);
        for (i, &x) in x.iter().enumerate() {
            // SAFETY: a run of the output is written by one task.
            unsafe { view.set(at + i * stride, T::narrow(x)) };
        }
    }
    by_integer!(call.dtype(out.0), integer(call, x, out))
}
