//! Tensors of one number, or of numbers in steps.

mod cpu;
#[cfg(test)]
mod tests;

use half::{bf16, f16};

use crate::device::cpu::Entry;
use crate::device::{Gpu, Launch, Stream};
use crate::kernels::{KernelParams, KernelSource, kernel_params};
use crate::ops::check::{check, float_entry};
use crate::ops::rows::{packet, whole};
use crate::ops::walk::Walk;
use crate::{DType, Result, Shape, Tensor};

/// A row-major tensor of any type, all of whose elements are `value`.
///
/// Floats are rounded to nearest; an integer type takes whole numbers that it holds, and bool takes 0 and 1.
///
/// # Errors
///
/// [`Error::Argument`](crate::Error::Argument) where `dtype` does not hold the value.
///
/// ```
/// use silicide::{DType, Device, ops};
/// # fn main() -> silicide::Result<()> {
/// let device = Device::cpu();
/// let stream = &mut device.stream();
/// let ones = ops::full(stream, DType::F32, [2, 2], 1.0)?;
/// assert_eq!(ones.to_vec::<f32>(stream)?, [1.0; 4]);
/// # Ok(())
/// # }
/// ```
pub fn full(stream: &mut Stream, dtype: DType, shape: impl Into<Shape>, value: f64) -> Result<Tensor> {
    let out = stream.empty(dtype, shape)?;
    full_into(stream, value, &out)?;
    Ok(out)
}

/// [`full`] over the elements of `out`, a view of any strides.
pub fn full_into(stream: &mut Stream, value: f64, out: &Tensor) -> Result<()> {
    let start = bits("full", "value", out.dtype(), value)?;
    if out.elements() == 0 {
        return Ok(());
    }
    let walk = Walk::elements("full", &[out])?;
    launch(stream, "full", Params { walk, start, step: 0, float_start: 0.0, float_step: 0.0 }, out, false)
}

/// `start`, `start + step`, `start + 2 * step` ... in `count` elements.
///
/// `dtype` is any but bool. Floats are computed in f32 and rounded once; an integer type takes a whole start and step,
/// and wraps past its range.
///
/// # Errors
///
/// [`Error::Argument`](crate::Error::Argument) where `dtype` does not hold the numbers.
///
/// ```
/// use silicide::{DType, Device, ops};
/// # fn main() -> silicide::Result<()> {
/// let device = Device::cpu();
/// let stream = &mut device.stream();
/// assert_eq!(ops::arange(stream, DType::I32, 7.0, -2.0, 4)?.to_vec::<i32>(stream)?, [7, 5, 3, 1]);
/// # Ok(())
/// # }
/// ```
pub fn arange(stream: &mut Stream, dtype: DType, start: f64, step: f64, count: usize) -> Result<Tensor> {
    const OP: &str = "arange";
    check(OP, dtype != DType::Bool, || "dtype: got bool, wanted a type of numbers".into())?;
    let out = stream.empty(dtype, [count])?;
    let (float_start, float_step) = (start as f32, step as f32);
    let start = bits(OP, "start", dtype, start)?;
    let whole = step.fract() == 0.0 && step.abs() < 2f64.powi(63);
    check(OP, dtype.is_float() || whole, || format!("step: got {step}, wanted a whole number for {dtype}"))?;
    if count == 0 {
        return Ok(out);
    }
    let walk = Walk::elements(OP, &[&out])?;
    let params = Params { walk, start, step: step as i64 as u64, float_start, float_step };
    launch(stream, OP, params, &out, dtype.is_float())?;
    Ok(out)
}

/// The bits of a number as an element of `dtype`.
pub(super) fn bits(op: &'static str, name: &str, dtype: DType, x: f64) -> Result<u64> {
    let (low, high) = match dtype {
        DType::F32 => return Ok((x as f32).to_bits().into()),
        DType::F16 => return Ok(f16::from_f64(x).to_bits().into()),
        DType::BF16 => return Ok(bf16::from_f64(x).to_bits().into()),
        DType::U8 => (0.0, 255.0),
        DType::I8 => (-128.0, 127.0),
        DType::U16 => (0.0, 65535.0),
        DType::U32 => (0.0, u32::MAX as f64),
        DType::I32 => (i32::MIN as f64, i32::MAX as f64),
        // The greatest f64 below 2^63.
        DType::I64 => (i64::MIN as f64, 2f64.powi(63) - 1024.0),
        DType::Bool => (0.0, 1.0),
    };
    check(op, x.fract() == 0.0 && x >= low && x <= high, || {
        format!("{name}: got {x}, wanted a whole number that {dtype} holds")
    })?;
    Ok(x as i64 as u64)
}

fn launch(stream: &mut Stream, op: &'static str, params: Params, out: &Tensor, floats: bool) -> Result<()> {
    let size = out.dtype().size();
    let entry = match (floats, size) {
        (true, _) => float_entry!(out.dtype(), T => cpu::floats::<T>),
        (_, 1) => cpu::integers::<u8> as Entry,
        (_, 2) => cpu::integers::<u16>,
        (_, 4) => cpu::integers::<u32>,
        _ => cpu::integers::<i64>,
    };
    stream.launch(Launch::new(op, &params).write(out), entry, || {
        let aligned = params.walk.packets_align(packet(out.dtype()), &[out]);
        let (threadgroups, threads) = params.walk.steps(if aligned { packet(out.dtype()) } else { 1 });
        let entry = if floats { format!("fill_{}", out.dtype()) } else { format!("fill_{}", 8 * size) };
        Gpu { source: &SOURCE, defines: whole(aligned), entry, threadgroups, threads }
    })
}

kernel_params! {
    struct Params {
        walk: Walk,
        /// Of integers, and of one number of any type; as many bits as the type has.
        start: u64,
        step: u64,
        float_start: f32,
        float_step: f32,
    }
}

pub(super) static SOURCE: KernelSource = KernelSource {
    name: "fill",
    params: &[Walk::DECLARATION, Params::DECLARATION],
    body: include_str!("kernel.metal"),
};
