//! What the ops' argument checks share.

use crate::{DType, Error, Result, Shape, Tensor};

/// An [`Error::Argument`] of `op` unless `ok`; the message says what was got and what was wanted.
pub(crate) fn check(op: &'static str, ok: bool, message: impl FnOnce() -> String) -> Result<()> {
    if ok { Ok(()) } else { Err(Error::argument(op, message())) }
}

/// That a tensor beside `x` is of its type or of f32.
pub(crate) fn same_or_f32(op: &'static str, name: &str, t: &Tensor, x: DType) -> Result<()> {
    check(op, t.dtype() == x || t.dtype() == DType::F32, || {
        let wanted = if x == DType::F32 { "f32".into() } else { format!("{x} or f32") };
        format!("{name}: got {}, wanted {wanted}", t.dtype())
    })
}

/// A size as kernels take it.
pub(crate) fn size(op: &'static str, name: &str, n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| Error::argument(op, format!("{name}: {n} is past 2^32 - 1")))
}

/// The shape that two shapes broadcast to: axes are matched from the last, and one of size 1 is repeated.
pub(crate) fn broadcast(op: &'static str, a: &Shape, b: &Shape) -> Result<Shape> {
    let (mut wide, narrow) = if a.rank() >= b.rank() { (*a, b) } else { (*b, a) };
    let lead = wide.rank() - narrow.rank();
    for (d, &n) in wide[lead..].iter_mut().zip(narrow.iter()) {
        check(op, *d == n || *d == 1 || n == 1, || {
            format!("got {a} and {b}, wanted axes that are equal or 1, matched from the last")
        })?;
        if *d == 1 {
            *d = n;
        }
    }
    Ok(wide)
}

/// A tensor as rows of its last axis. Strides are in elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows {
    pub(crate) count: u32,
    pub(crate) len: u32,
    pub(crate) stride: u32,
}

impl Rows {
    pub(crate) fn of(op: &'static str, name: &str, t: &Tensor) -> Result<Rows> {
        let (count, len, stride) = t.as_rows().ok_or_else(|| {
            let message = format!(
                "{name}: got {t:?} with strides {}, wanted a contiguous last axis and one stride between rows; copy it first",
                t.strides()
            );
            Error::argument(op, message)
        })?;
        Ok(Rows { count: size(op, name, count)?, len: size(op, name, len)?, stride: size(op, name, stride)? })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0 || self.len == 0
    }
}

/// The instance of a generic CPU entry for a floating-point element type that was checked before.
macro_rules! float_entry {
    ($dtype:expr, $t:ident => $entry:expr) => {
        match $dtype {
            $crate::DType::F16 => {
                type $t = half::f16;
                $entry as $crate::device::cpu::Entry
            }
            $crate::DType::BF16 => {
                type $t = half::bf16;
                $entry
            }
            _ => {
                type $t = f32;
                $entry
            }
        }
    };
}
pub(crate) use float_entry;
