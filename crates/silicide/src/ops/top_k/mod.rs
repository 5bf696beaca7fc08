//! The greatest elements of each row, in order.

mod cpu;
#[cfg(test)]
mod tests;

use crate::device::{DeviceKind, Gpu, Launch, Stream};
use crate::kernels::{KernelParams, KernelSource, kernel_params};
use crate::ops::check::{check, float_entry, size};
use crate::ops::parts::{self, PART};
use crate::ops::walk::Walk;
use crate::ops::{Order, sort, take_along_axis_into};
use crate::{DType, Result, Tensor};

/// The `k` greatest elements along the last axis and their indices: values in falling order, of equals the lowest index
/// first.
///
/// `x` is f32, f16 or bf16 of one axis or more, with any strides. The results are row-major in `x`'s shape with a last
/// axis of `k`: values of `x`'s type, and u32 indices. NaN counts as greater than every number; -0 and 0 are equal. A GPU
/// reads the row once, and sorts it where `k` is more than 64.
///
/// # Errors
///
/// [`Error::Argument`](crate::Error::Argument) where types do not fit, or `k` is more than the row has.
///
/// ```
/// use silicide::{Device, ops};
/// # fn main() -> silicide::Result<()> {
/// let device = Device::cpu();
/// let stream = &mut device.stream();
/// let x = device.tensor(&[2.0f32, 7.0, 4.0, 7.0], [1, 4])?;
/// let (values, indices) = ops::top_k(stream, &x, 3)?;
/// assert_eq!(values.to_vec::<f32>(stream)?, [7.0, 7.0, 4.0]);
/// assert_eq!(indices.to_vec::<u32>(stream)?, [1, 3, 2]);
/// # Ok(())
/// # }
/// ```
pub fn top_k(stream: &mut Stream, x: &Tensor, k: usize) -> Result<(Tensor, Tensor)> {
    let mut shape = *x.shape();
    if let Some(last) = shape.last_mut() {
        check(OP, k <= *last, || format!("k: got {k}, wanted {last} or less for {x:?}"))?;
        *last = k;
    }
    let (values, indices) = (stream.empty(x.dtype(), shape)?, stream.empty(DType::U32, shape)?);
    top_k_into(stream, x, &values, &indices)?;
    Ok((values, indices))
}

/// [`top_k`] into `values` and `indices`, both contiguous, with `k` from their last axis; neither shares memory with `x`.
pub fn top_k_into(stream: &mut Stream, x: &Tensor, values: &Tensor, indices: &Tensor) -> Result<()> {
    let dtype = x.dtype();
    check(OP, dtype.is_float() && x.rank() > 0, || format!("x: got {x:?}, wanted rows of f32, f16 or bf16"))?;
    let k = values.shape().last().copied().unwrap_or(0);
    check(OP, k <= x.dim(-1), || format!("k: got {k}, wanted {} or less for {x:?}", x.dim(-1)))?;
    let mut shape = *x.shape();
    shape[x.rank() - 1] = k;
    for (name, t, dtype) in [("values", values, dtype), ("indices", indices, DType::U32)] {
        check(OP, *t.shape() == shape && t.dtype() == dtype && t.is_contiguous(), || {
            format!("{name}: got {t:?}, wanted {dtype}{shape}, contiguous")
        })?;
    }
    if values.elements() == 0 {
        return Ok(());
    }
    let len = size(OP, "the last axis", x.dim(-1))?;
    if k > MOST_SELECTED && stream.device().kind() != DeviceKind::Cpu {
        let why = "k is past 64: rows are sorted, as selecting so many would take longer";
        sort::first(stream, OP, x, Order::Descending, indices, why)?;
        return take_along_axis_into(stream, x, indices, x.rank() - 1, values);
    }
    let walk = Walk::rows(OP, &[x])?;
    let rows = walk.row_count() as usize;
    let on_gpu = stream.device().kind() != DeviceKind::Cpu;
    let mut lists = if on_gpu { (len as usize).div_ceil(PART) } else { 1 };
    let mut params = Params { walk, k: k as u32, lists: lists as u32, joined: 1, last: (lists == 1).into() };
    let mut from = lists_of(stream, rows, lists, k)?;
    let threadgroups = size(OP, "threadgroups", rows * lists)?;
    let launch = Launch::new(OP, &params).read(x).write(values).write(indices).write_in_place_optional(from.as_ref());
    stream.launch(launch, float_entry!(dtype, T => cpu::run::<T>), || {
        gpu(format!("top_k_{dtype}"), threadgroups, parts::threads(len as usize))
    })?;
    while let Some(lists_before) = from {
        let joined = lists.div_ceil(LISTS);
        (params.lists, params.joined, params.last) = (lists as u32, joined as u32, (joined == 1).into());
        let to = lists_of(stream, rows, joined, k)?;
        let launch = Launch::new(OP, &params).read(x).write(values).write(indices).read(&lists_before);
        let threads = lists.min(LISTS).next_multiple_of(32) as u32;
        stream.launch(
            launch.write_in_place_optional(to.as_ref()),
            |_| unreachable!("the CPU takes a row as a whole"),
            || gpu(format!("top_k_join_{dtype}"), (rows * joined) as u32, threads),
        )?;
        (from, lists) = (to, joined);
    }
    Ok(())
}

/// Room for the best of each part, as keys with indices; none where there is one part.
fn lists_of(stream: &mut Stream, rows: usize, lists: usize, k: usize) -> Result<Option<Tensor>> {
    if lists > 1 { stream.empty(DType::I64, [rows, lists, k]).map(Some) } else { Ok(None) }
}

fn gpu(entry: String, threadgroups: u32, threads: u32) -> Gpu {
    Gpu { source: &SOURCE, defines: String::new(), entry, threadgroups: [threadgroups, 1, 1], threads: [threads, 1, 1] }
}

pub(super) use cpu::{best_of, room};

const OP: &str = "top_k";

/// The greatest `k` that a GPU selects by parts.
const MOST_SELECTED: usize = 64;

/// Lists that a threadgroup merges.
const LISTS: usize = 256;

kernel_params! {
    struct Params {
        walk: Walk,
        k: u32,
        /// Lists of a row, one of each part at first.
        lists: u32,
        /// Lists that they are joined to.
        joined: u32,
        /// Whether results are written, and not lists.
        last: u32,
    }
}

pub(super) static SOURCE: KernelSource = KernelSource {
    name: "top_k",
    params: &[Walk::DECLARATION, Params::DECLARATION],
    body: include_str!("kernel.metal"),
};
