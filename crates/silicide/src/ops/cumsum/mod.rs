//! Running sums of rows.

mod cpu;
#[cfg(test)]
mod tests;

use crate::device::cpu::Entry;
use crate::device::{DeviceKind, Gpu, Launch, Stream};
use crate::kernels::{KernelParams, KernelSource, kernel_params};
use crate::ops::check::{check, float_entry, size};
use crate::ops::walk::Walk;
use crate::{DType, Result, Tensor};

/// How [`cumsum`] counts. The default takes each element with all before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cumsum {
    /// Leaves the element itself out, so that the first sum is 0.
    pub exclusive: bool,
    /// Sums from the end of the row.
    pub reverse: bool,
}

/// Sums along the last axis, of each element and all before it.
///
/// `x` is f32, f16, bf16, i32 or u32 of one axis or more and of any length, with any strides; the result has its type and
/// is row-major. Floats are summed in f32 and each sum is rounded once, where mlx rounds every step; integers wrap. From
/// a NaN on all sums are NaN, from an infinity on they are that infinity, or NaN after its opposite.
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
/// let x = device.tensor(&[1.0f32, 2.0, 3.0, 4.0], [4])?;
/// assert_eq!(ops::cumsum(stream, &x, ops::Cumsum::default())?.to_vec::<f32>(stream)?, [1.0, 3.0, 6.0, 10.0]);
/// let left = ops::Cumsum { exclusive: true, reverse: true };
/// assert_eq!(ops::cumsum(stream, &x, left)?.to_vec::<f32>(stream)?, [9.0, 7.0, 4.0, 0.0]);
/// # Ok(())
/// # }
/// ```
pub fn cumsum(stream: &mut Stream, x: &Tensor, options: Cumsum) -> Result<Tensor> {
    let out = stream.empty(x.dtype(), *x.shape())?;
    cumsum_into(stream, x, options, &out)?;
    Ok(out)
}

/// [`cumsum`] into `out`, which may be `x` itself.
pub fn cumsum_into(stream: &mut Stream, x: &Tensor, options: Cumsum, out: &Tensor) -> Result<()> {
    let dtype = x.dtype();
    let integer = matches!(dtype, DType::I32 | DType::U32);
    check(OP, (dtype.is_float() || integer) && x.rank() > 0, || {
        format!("x: got {x:?}, wanted rows of f32, f16, bf16, i32 or u32")
    })?;
    check(OP, out.shape() == x.shape() && out.dtype() == dtype, || format!("out: got {out:?}, wanted {x:?}"))?;
    if out.elements() == 0 {
        return Ok(());
    }
    let walk = Walk::rows(OP, &[x, out])?;
    let len = walk.row_len();
    let split = stream.device().kind() != DeviceKind::Cpu && len > CHUNK;
    let chunk = if split { CHUNK } else { len };
    let chunks = len.div_ceil(chunk);
    size(OP, "threadgroups", walk.row_count() as usize * chunks)?;
    let params = Params {
        walk,
        chunk: chunk as u64,
        chunks: chunks as u32,
        exclusive: options.exclusive.into(),
        reverse: options.reverse.into(),
        has_carries: split.into(),
    };
    // Before each chunk of a long row, the sum of those before it.
    let carries = match split {
        true => Some(carries(stream, x, params)?),
        false => None,
    };
    let launch = Launch::new(OP, &params).read(x).read_optional(carries.as_ref()).write_in_place(out);
    let entry = match dtype {
        DType::I32 => cpu::run::<i32> as Entry,
        DType::U32 => cpu::run::<u32>,
        _ => float_entry!(dtype, T => cpu::run::<T>),
    };
    stream.launch(launch.flops(x.elements()), entry, || params.gpu(format!("cumsum_{dtype}")))
}

/// Sums each chunk, then the chunks before each.
fn carries(stream: &mut Stream, x: &Tensor, params: Params) -> Result<Tensor> {
    let accumulator = if x.dtype().is_float() { DType::F32 } else { DType::U32 };
    let carries = stream.empty(accumulator, [params.walk.row_count() as usize, params.chunks as usize])?;
    let launch = Launch::new("cumsum, chunks", &params).read(x).write(&carries).flops(x.elements());
    let only_gpu = |_: &crate::device::cpu::Call| unreachable!("the CPU takes a row as a whole");
    stream.launch(launch, only_gpu, || params.gpu(format!("cumsum_totals_{}", x.dtype())))?;
    let params = Params {
        walk: Walk::rows(OP, &[&carries, &carries])?,
        chunk: params.chunks.into(),
        chunks: 1,
        exclusive: true.into(),
        reverse: false.into(),
        has_carries: false.into(),
    };
    let launch = Launch::new("cumsum, carries", &params).read(&carries).read_optional(None).write_in_place(&carries);
    stream.launch(launch, only_gpu, || params.gpu(format!("cumsum_{accumulator}")))?;
    Ok(carries)
}

const OP: &str = "cumsum";

/// Elements that a threadgroup takes of a long row.
const CHUNK: usize = 8192;

kernel_params! {
    struct Params {
        walk: Walk,
        /// Elements of a row that one threadgroup takes.
        chunk: u64,
        chunks: u32,
        exclusive: u32,
        reverse: u32,
        has_carries: u32,
    }
}

impl Params {
    fn gpu(&self, entry: String) -> Gpu {
        let threads = (self.chunk.min(CHUNK as u64) as u32).div_ceil(4).next_multiple_of(32).min(512);
        let threadgroups = [self.walk.row_count() * self.chunks, 1, 1];
        Gpu { source: &SOURCE, defines: String::new(), entry, threadgroups, threads: [threads, 1, 1] }
    }
}

pub(super) static SOURCE: KernelSource = KernelSource {
    name: "cumsum",
    params: &[Walk::DECLARATION, Params::DECLARATION],
    body: include_str!("kernel.metal"),
};
