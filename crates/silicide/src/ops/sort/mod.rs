//! Sorting rows.

mod cpu;
#[cfg(test)]
mod tests;

use crate::device::cpu::{self as processor, Entry};
use crate::device::{DeviceKind, Gpu, Launch, Stream};
use crate::kernels::{KernelParams, KernelSource, kernel_params};
use crate::ops::check::{check, float_entry, size};
use crate::ops::take_along_axis_into;
use crate::ops::walk::Walk;
use crate::{DType, Result, Tensor};

/// Which elements [`argsort`] and [`sort`] put first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The least: NaN comes last, as mlx and numpy have it.
    Ascending,
    /// The greatest: NaN comes first, as torch has it.
    Descending,
}

/// The indices along the last axis that put its elements in order, of equals the lowest index first.
///
/// `x` is f32, f16, bf16, i32 or u32 of one axis or more and of any length, with any strides; the result is u32 in its
/// shape, row-major. NaN counts as greater than every number; -0 and 0 are equal.
///
/// # Errors
///
/// [`Error::Argument`](crate::Error::Argument) where types do not fit.
///
/// ```
/// use silicide::{Device, ops};
/// # fn main() -> silicide::Result<()> {
/// let device = Device::cpu();
/// let stream = &mut device.stream();
/// let x = device.tensor(&[2.0f32, 7.0, 2.0, f32::NAN], [4])?;
/// assert_eq!(ops::argsort(stream, &x, ops::Order::Ascending)?.to_vec::<u32>(stream)?, [0, 2, 1, 3]);
/// assert_eq!(ops::argsort(stream, &x, ops::Order::Descending)?.to_vec::<u32>(stream)?, [3, 1, 0, 2]);
/// # Ok(())
/// # }
/// ```
pub fn argsort(stream: &mut Stream, x: &Tensor, order: Order) -> Result<Tensor> {
    let out = stream.empty(DType::U32, *x.shape())?;
    argsort_into(stream, x, order, &out)?;
    Ok(out)
}

/// [`argsort`] into `out`, which is contiguous and shares no memory with `x`.
pub fn argsort_into(stream: &mut Stream, x: &Tensor, order: Order, out: &Tensor) -> Result<()> {
    let dtype = x.dtype();
    check(ARGSORT, (dtype.is_float() || matches!(dtype, DType::I32 | DType::U32)) && x.rank() > 0, || {
        format!("x: got {x:?}, wanted rows of f32, f16, bf16, i32 or u32")
    })?;
    check(ARGSORT, out.shape() == x.shape() && out.dtype() == DType::U32 && out.is_contiguous(), || {
        format!("out: got {out:?}, wanted u32{}, contiguous", x.shape())
    })?;
    first(stream, ARGSORT, x, order, out, "")
}

/// The elements of each row of the last axis in order; see [`argsort`].
///
/// ```
/// use silicide::{Device, ops};
/// # fn main() -> silicide::Result<()> {
/// let device = Device::cpu();
/// let stream = &mut device.stream();
/// let x = device.tensor(&[2i32, 7, -2, 1, 9, 0], [2, 3])?;
/// assert_eq!(ops::sort(stream, &x, ops::Order::Ascending)?.to_vec::<i32>(stream)?, [-2, 2, 7, 0, 1, 9]);
/// # Ok(())
/// # }
/// ```
pub fn sort(stream: &mut Stream, x: &Tensor, order: Order) -> Result<Tensor> {
    let out = stream.empty(x.dtype(), *x.shape())?;
    sort_into(stream, x, order, &out)?;
    Ok(out)
}

/// [`sort`] into `out`, a view of any strides that shares no memory with `x`.
pub fn sort_into(stream: &mut Stream, x: &Tensor, order: Order, out: &Tensor) -> Result<()> {
    check("sort", out.shape() == x.shape() && out.dtype() == x.dtype(), || format!("out: got {out:?}, wanted {x:?}"))?;
    let indices = argsort(stream, x, order)?;
    take_along_axis_into(stream, x, &indices, x.rank() - 1, out)
}

/// The first indices of each sorted row, as many as the last axis of `out` has; both were checked. `why` is for the plan.
pub(super) fn first(
    stream: &mut Stream,
    op: &'static str,
    x: &Tensor,
    order: Order,
    out: &Tensor,
    why: &'static str,
) -> Result<()> {
    if out.elements() == 0 {
        return Ok(());
    }
    let dtype = x.dtype();
    let len = size(op, "the last axis", x.dim(-1))? as usize;
    let walk = Walk::rows(op, &[x])?;
    let rows = walk.row_count() as usize;
    let block = len.next_power_of_two().clamp(MIN_BLOCK, MAX_BLOCK);
    let mut params = Params {
        walk,
        keep: out.dim(-1) as u64,
        run: block as u64,
        descending: (order == Order::Descending).into(),
        block: block as u32,
        blocks: len.div_ceil(block) as u32,
        pieces: len.div_ceil(PIECE) as u32,
    };
    let entry = match dtype {
        DType::I32 => cpu::run::<i32> as Entry,
        DType::U32 => cpu::run::<u32>,
        _ => float_entry!(dtype, T => cpu::run::<T>),
    };
    let blocks = size(op, "threadgroups", rows * params.blocks as usize)?;
    let sort_blocks = |output| Gpu {
        source: &SOURCE,
        defines: String::new(),
        entry: format!("sort_{dtype}_{output}"),
        threadgroups: [blocks, 1, 1],
        threads: [(block / 2) as u32, 1, 1],
    };
    let on_gpu = stream.device().kind() != DeviceKind::Cpu;
    let named = |launch: Launch, kernel: String| if on_gpu { launch.choice(kernel, why) } else { launch };
    if params.blocks == 1 || !on_gpu {
        let launch = named(Launch::new(op, &params).read(x).write(out), format!("sort_{dtype}_u32"));
        return stream.launch(launch, entry, || sort_blocks("u32"));
    }
    let only_gpu = |_: &processor::Call| unreachable!("the CPU takes a row as a whole");
    // Each element's key and index in one number, so that no two are equal.
    let mut from = stream.empty(DType::I64, [rows, len])?;
    let mut to = stream.empty(DType::I64, [rows, len])?;
    let keep = std::mem::replace(&mut params.keep, len as u64);
    let launch = named(Launch::new(op, &params).read(x).write(&from), format!("sort_{dtype}_u64"));
    stream.launch(launch, only_gpu, || sort_blocks("u64"))?;
    loop {
        let last = 2 * params.run >= len as u64;
        if last {
            (params.keep, params.pieces) = (keep, keep.div_ceil(PIECE as u64) as u32);
        }
        let entry = if last { "sort_merge_u32" } else { "sort_merge_u64" };
        let threads = size(op, "threads", rows * params.pieces as usize)?;
        let launch = Launch::new(op, &params).read(&from).write(if last { out } else { &to });
        stream.launch(named(launch, entry.into()), only_gpu, || Gpu {
            source: &SOURCE,
            defines: String::new(),
            entry: entry.into(),
            threadgroups: [threads.div_ceil(256), 1, 1],
            threads: [256, 1, 1],
        })?;
        if last {
            return Ok(());
        }
        std::mem::swap(&mut from, &mut to);
        params.run *= 2;
    }
}

const ARGSORT: &str = "argsort";

/// Elements that a threadgroup sorts: half as many threads make whole simdgroups, and threadgroup memory holds them.
const MIN_BLOCK: usize = 64;
const MAX_BLOCK: usize = 2048;

/// Elements that a thread merges.
const PIECE: usize = 8;

kernel_params! {
    struct Params {
        walk: Walk,
        /// Elements written of a row.
        keep: u64,
        /// Elements in sorted runs, that are merged two by two.
        run: u64,
        descending: u32,
        /// Elements that a threadgroup sorts, a power of two.
        block: u32,
        /// Blocks in a row.
        blocks: u32,
        /// Threads that merge a row.
        pieces: u32,
    }
}

pub(super) static SOURCE: KernelSource = KernelSource {
    name: "sort",
    params: &[Walk::DECLARATION, Params::DECLARATION],
    body: include_str!("kernel.metal"),
};
