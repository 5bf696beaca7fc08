//! Sums, means, products and extremes.

mod cpu;
#[cfg(test)]
mod tests;

use crate::device::cpu::Entry;
use crate::device::{DeviceKind, Gpu, Launch, Stream};
use crate::kernels::{KernelParams, KernelSource, kernel_enum, kernel_params};
use crate::ops::check::{check, float_entry, size};
use crate::ops::rows::{packet, whole};
use crate::ops::walk::Walk;
use crate::{DType, Result, Shape, Tensor};

kernel_enum! {
    /// What [`reduce`] computes.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Reduce {
        /// The sum; 0 of nothing.
        Sum,
        /// The sum over the number of elements; NaN of nothing. Not for integers.
        Mean,
        /// The greatest; NaN where there is one.
        Max,
        /// The least; NaN where there is one.
        Min,
        /// The product; 1 of nothing.
        Prod,
    }
}

/// One number for each row of the last axis.
///
/// `x` is f32, f16, bf16, i32 or u32 of one axis or more, with any strides: for another axis, give it permuted so that it
/// is the last. The result has `x`'s type, and its shape without the last axis. Floats are computed in f32 and rounded
/// once; integers wrap.
///
/// # Errors
///
/// [`Error::Argument`](crate::Error::Argument) where types do not fit, or there is nothing to take an extreme of.
///
/// ```
/// use silicide::{Device, ops};
/// # fn main() -> silicide::Result<()> {
/// let device = Device::cpu();
/// let stream = &mut device.stream();
/// let x = device.tensor(&[1.0f32, 2.0, 3.0, 4.0, 5.0, 9.0], [2, 3])?;
/// assert_eq!(ops::reduce(stream, ops::Reduce::Mean, &x)?.to_vec::<f32>(stream)?, [2.0, 6.0]);
/// let columns = x.permute(&[1, 0])?;
/// assert_eq!(ops::reduce(stream, ops::Reduce::Sum, &columns)?.to_vec::<f32>(stream)?, [5.0, 7.0, 12.0]);
/// # Ok(())
/// # }
/// ```
pub fn reduce(stream: &mut Stream, op: Reduce, x: &Tensor) -> Result<Tensor> {
    let leading = x.rank().saturating_sub(1);
    let shape = Shape::new(&x.shape()[..leading]).expect("a shape's start is a shape");
    let out = stream.empty(x.dtype(), shape)?;
    reduce_into(stream, op, x, &out)?;
    Ok(out)
}

/// [`reduce`] into `out`, which is contiguous and shares no memory with `x`.
pub fn reduce_into(stream: &mut Stream, op: Reduce, x: &Tensor, out: &Tensor) -> Result<()> {
    check(OP, x.rank() > 0, || format!("x: got {x:?}, wanted one axis or more"))?;
    check_types(op, x, x.dim(-1))?;
    let leading = &x.shape()[..x.rank() - 1];
    check(OP, out.shape()[..] == *leading && out.dtype() == x.dtype() && out.is_contiguous(), || {
        format!("out: got {out:?}, wanted {}{leading:?}, contiguous", x.dtype())
    })?;
    run(stream, op, x, x.dim(-1), out)
}

/// One number for all elements, as [`reduce`] gives for a row: a tensor without axes.
///
/// # Errors
///
/// [`Error::Argument`](crate::Error::Argument) where types do not fit, or there is nothing to take an extreme of.
pub fn reduce_all(stream: &mut Stream, op: Reduce, x: &Tensor) -> Result<Tensor> {
    let out = stream.empty(x.dtype(), [])?;
    reduce_all_into(stream, op, x, &out)?;
    Ok(out)
}

/// [`reduce_all`] into `out`, a tensor of one element that shares no memory with `x`.
pub fn reduce_all_into(stream: &mut Stream, op: Reduce, x: &Tensor, out: &Tensor) -> Result<()> {
    let count = x.elements();
    check_types(op, x, count)?;
    check(OP, out.elements() == 1 && out.dtype() == x.dtype(), || {
        format!("out: got {out:?}, wanted one element of {}", x.dtype())
    })?;
    if x.is_contiguous() {
        return run(stream, op, &x.reshape([count])?, count, out);
    }
    // A view with gaps has rows that are no row.
    let leading = Shape::new(&x.shape()[..x.rank() - 1]).expect("a shape's start is a shape");
    let rows = stream.empty(accumulator(x.dtype()), leading)?;
    run(stream, op.part(), x, x.dim(-1), &rows)?;
    run(stream, op, &rows.reshape([rows.elements()])?, count, out)
}

fn check_types(op: Reduce, x: &Tensor, len: usize) -> Result<()> {
    let dtype = x.dtype();
    let integer = matches!(dtype, DType::I32 | DType::U32);
    check(OP, dtype.is_float() || integer, || format!("x: got {x:?}, wanted f32, f16, bf16, i32 or u32"))?;
    check(OP, !(integer && op == Reduce::Mean), || format!("a mean is not for {dtype}; cast to a float first"))?;
    check(OP, len > 0 || !matches!(op, Reduce::Max | Reduce::Min), || {
        format!("x: got {x:?}, wanted something to take an extreme of")
    })
}

/// The type of partial results.
fn accumulator(dtype: DType) -> DType {
    if dtype.is_float() { DType::F32 } else { dtype }
}

impl Reduce {
    /// What parts are reduced by, before their results are by this.
    fn part(self) -> Reduce {
        if self == Reduce::Mean { Reduce::Sum } else { self }
    }
}

/// Reduces rows of `x` to `out`, which has as many elements. A mean is of `count` elements.
fn run(stream: &mut Stream, op: Reduce, x: &Tensor, count: usize, out: &Tensor) -> Result<()> {
    if out.elements() == 0 {
        return Ok(());
    }
    let (walk, len) = (Walk::rows(OP, &[x])?, x.dim(-1));
    let mut params = Params {
        walk,
        chunk: len as u64,
        chunks: 1,
        op: op.code(),
        count: count as f32,
        narrow: (len <= NARROW).into(),
    };
    if stream.device().kind() != DeviceKind::Cpu && len > CHUNK {
        let rows = walk.row_count() as usize;
        let chunks = size(OP, "chunks", len.div_ceil(CHUNK))?;
        size(OP, "threadgroups", rows * chunks as usize)?;
        (params.chunk, params.chunks, params.op) = (CHUNK as u64, chunks, op.part().code());
        let parts = stream.empty(accumulator(x.dtype()), [rows, chunks as usize])?;
        launch(stream, "reduce, chunks", params, x, &parts)?;
        return run(stream, op, &parts, count, out);
    }
    launch(stream, OP, params, x, out)
}

fn launch(stream: &mut Stream, name: &'static str, params: Params, x: &Tensor, out: &Tensor) -> Result<()> {
    let (from, to) = (x.dtype(), out.dtype());
    let entry = match (from, to) {
        (DType::I32, _) => cpu::integers::<i32> as Entry,
        (DType::U32, _) => cpu::integers::<u32>,
        (DType::F32, _) => float_entry!(to, T => cpu::floats::<f32, T>),
        (_, DType::F32) => float_entry!(from, T => cpu::floats::<T, f32>),
        _ => float_entry!(to, T => cpu::floats::<T, T>),
    };
    let launch = Launch::new(name, &params).read(x).write(out).flops(x.elements());
    stream.launch(launch, entry, || {
        let aligned = params.walk.packets_align(packet(from), &[x]);
        let (groups, threads) = match params.narrow {
            0 => {
                let packets = (params.chunk as u32).div_ceil(if aligned { packet(from) as u32 } else { 1 });
                let each = packets.div_ceil(LOADS).next_multiple_of(32).min(512);
                (params.walk.row_count() * params.chunks, each)
            }
            _ => (params.walk.row_count().div_ceil(8), 256),
        };
        Gpu {
            source: &SOURCE,
            defines: whole(aligned) + &format!("\n#define FUNCTION {}", Reduce::NAMES[params.op as usize]),
            entry: format!("reduce_{from}_{to}"),
            threadgroups: [groups, 1, 1],
            threads: [threads, 1, 1],
        }
    })
}

const OP: &str = "reduce";

/// Packets that a thread takes at a time.
const LOADS: u32 = 4;

/// The longest row that a simdgroup takes.
const NARROW: usize = 256;

/// Elements that a threadgroup takes of a long row.
const CHUNK: usize = 16 * 1024;

kernel_params! {
    struct Params {
        walk: Walk,
        /// Elements of a row that one threadgroup takes.
        chunk: u64,
        chunks: u32,
        /// A `Reduce`.
        op: u32,
        /// What a mean divides by.
        count: f32,
        /// Whether each simdgroup has a row of its own.
        narrow: u32,
    }
}

pub(super) static SOURCE: KernelSource = KernelSource {
    name: "reduce",
    params: &[Walk::DECLARATION, Reduce::DECLARATION, Params::DECLARATION],
    body: include_str!("kernel.metal"),
};
