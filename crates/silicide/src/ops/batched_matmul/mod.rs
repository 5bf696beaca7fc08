//! Products of two activations, entry by entry of a batch.

mod cpu;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::device::{Gpu, Launch, Stream};
use crate::kernels::{KernelParams, KernelSource, kernel_params};
use crate::matrix::MatrixFormat;
use crate::ops::check::{broadcast, check, float_entry, size};
use crate::ops::fill::full_into;
use crate::ops::matmul::{self, Precision, ROWS, SIMDGROUPS, UNIT, reader, splits};
use crate::ops::walk::Walk;
use crate::{DType, Device, Result, Shape, Tensor};

/// `a bᵀ` for each entry of a batch: every row of `a` times every row of `b`.
///
/// `a` is `[.., m, k]` and `b` `[.., n, k]`, each in f32, f16 or bf16, with a contiguous last axis; the result is `[.., m, n]` in
/// `a`'s type. Leading axes broadcast as numpy's do, and may have any strides: query heads that share a head of keys are
/// `[kv_heads, group, m, k]` with `[kv_heads, 1, n, k]`. Sums are f32; `precision` says whether `a` and `b` may be rounded, on a CPU
/// to bf16. For `a b`, with `b` of `[.., k, n]`, give a [`copy`](fn@super::copy) of `b` with the last two axes
/// [permuted](Tensor::permute).
///
/// # Errors
///
/// [`Error::Argument`](crate::Error::Argument) where shapes or types do not fit, or a last axis is not contiguous.
///
/// ```
/// use silicide::ops::{self, Precision};
/// # fn main() -> silicide::Result<()> {
/// let device = silicide::Device::cpu();
/// let stream = &mut device.stream();
/// let a = device.tensor(&[1.0f32, 2.0, 3.0, 4.0], [2, 1, 2])?;
/// let b = device.tensor(&[10.0f32, 1.0, 0.0, 1.0], [1, 2, 2])?;
/// let y = ops::batched_matmul(stream, &a, &b, Precision::F32)?;
/// assert_eq!(y.shape()[..], [2, 1, 2]);
/// assert_eq!(y.to_vec::<f32>(stream)?, [12.0, 2.0, 34.0, 4.0]);
/// # Ok(())
/// # }
/// ```
pub fn batched_matmul(stream: &mut Stream, a: &Tensor, b: &Tensor, precision: Precision) -> Result<Tensor> {
    let out = stream.empty(a.dtype(), out_shape(a, b)?)?;
    batched_matmul_into(stream, a, b, precision, &out)?;
    Ok(out)
}

/// [`batched_matmul`] into `out`, which is contiguous along its last axis and shares no memory with `a` or `b`.
pub fn batched_matmul_into(
    stream: &mut Stream,
    a: &Tensor,
    b: &Tensor,
    precision: Precision,
    out: &Tensor,
) -> Result<()> {
    let shape = out_shape(a, b)?;
    check(OP, out.dtype() == a.dtype() && *out.shape() == shape, || {
        format!("out: got {out:?}, wanted {} {shape}", a.dtype())
    })?;
    let strides = [row_stride("a", a)?, row_stride("b", b)?, row_stride("out", out)?];
    if out.elements() == 0 {
        return Ok(());
    }
    let k = size(OP, "k", a.dim(-1))?;
    if k == 0 {
        return full_into(stream, 0.0, out);
    }
    // An entry of the batch stands at its first element.
    let corner = |t: &Tensor| {
        let mut wide = shape;
        wide[shape.rank() - 2..].copy_from_slice(&t.shape()[t.rank() - 2..]);
        t.broadcast_to(wide)?.slice(wide.rank() - 2, 0..1)?.slice(wide.rank() - 1, 0..1)
    };
    let walk = Walk::elements(OP, &[&corner(a)?, &corner(b)?, &corner(out)?])?;
    let (m, n) = (size(OP, "m", a.dim(-2))?, size(OP, "n", b.dim(-2))?);
    let form = match tensor_cores(stream.device(), a, b, m) {
        true => GpuForm::TENSOR,
        false => GpuForm::of(m, n, k),
    };
    let params = Params { walk, strides, m, n, k, blocks: n.div_ceil(form.rows), splits: form.splits };
    let batch = walk.len as usize * walk.row_count() as usize;
    let launch =
        Launch::new(OP, &params).read(a).read(b).write(out).flops(2 * batch * m as usize * n as usize * k as usize);
    let launch = match stream.device().as_cpu() {
        Some(cpu) => {
            let context = cpu::Context::new(b.dtype(), n, k, precision)?;
            let why = context.reason(cpu.features(), m);
            launch.choice(format!("cpu {} {}", b.dtype(), cpu.features()), why).context(&Arc::new(context))
        }
        None => launch.choice(format!("{} {}", form.entry, b.dtype()), ""),
    };
    let groups = size(OP, "the batch times blocks of n", batch * params.blocks as usize)?;
    stream.launch(launch, float_entry!(a.dtype(), T => cpu::run::<T>), || {
        let whole = k.is_multiple_of(UNIT) && a.vectors_align(4) && b.vectors_align(4);
        Gpu {
            source: form.source,
            defines: defines(a.dtype(), b.dtype(), whole),
            entry: form.entry.into(),
            threadgroups: [groups, m.div_ceil(form.tokens), 1],
            threads: [form.threads, 1, 1],
        }
    })
}

/// `[.., m, n]` for `a` of `[.., m, k]` and `b` of `[.., n, k]`.
fn out_shape(a: &Tensor, b: &Tensor) -> Result<Shape> {
    let matrices = |t: &Tensor| t.dtype().is_float() && t.rank() >= 2;
    check(OP, matrices(a) && matrices(b) && a.dim(-1) == b.dim(-1), || {
        format!("got {a:?} and {b:?}, wanted floats [.., m, k] and [.., n, k]")
    })?;
    let rank = a.rank().max(b.rank());
    // Last axes of one element broadcast to anything, so that the leading ones alone decide.
    let lead = |t: &Tensor| {
        let mut shape = *t.shape();
        shape[t.rank() - 2..].fill(1);
        shape
    };
    let mut shape = broadcast(OP, &lead(a), &lead(b))?;
    (shape[rank - 2], shape[rank - 1]) = (a.dim(-2), b.dim(-2));
    Ok(shape)
}

/// Elements from row to row; 0 where there is one.
fn row_stride(name: &str, t: &Tensor) -> Result<u32> {
    check(OP, t.dim(-1) <= 1 || t.strides()[t.rank() - 1] == 1, || {
        format!("{name}: got {t:?} with strides {}, wanted a contiguous last axis; copy it first", t.strides())
    })?;
    if t.dim(-2) <= 1 { Ok(0) } else { size(OP, name, t.strides()[t.rank() - 2]) }
}

/// An entry point of the kernel, and how much of an entry's result one of its threadgroups computes.
struct GpuForm {
    source: &'static KernelSource,
    entry: &'static str,
    /// Rows of b.
    rows: u32,
    /// Rows of a.
    tokens: u32,
    threads: u32,
    /// Simdgroups that share the columns of a row of b.
    splits: u32,
}

impl GpuForm {
    /// The form of `kernel.cu`.
    const TENSOR: GpuForm =
        GpuForm { source: &NVIDIA, entry: "batched_matmul_tensor", rows: 128, tokens: 128, threads: 256, splits: 1 };

    fn of(m: u32, n: u32, k: u32) -> GpuForm {
        let source = &SOURCE;
        let splits = splits(n, k);
        let few = |entry, tokens| GpuForm {
            source,
            entry,
            rows: ROWS * SIMDGROUPS / splits,
            tokens,
            threads: 32 * SIMDGROUPS,
            splits,
        };
        match m {
            1 => few("batched_matmul_one", 1),
            2..=16 => few("batched_matmul_few", 4),
            _ => GpuForm { rows: 64, threads: 128, splits: 1, ..few("batched_matmul_tiled", 32) },
        }
    }
}

/// Whether tensor cores take the products: of many rows, of one type of 16 bits, that are whole chunks of 16 bytes.
fn tensor_cores(device: &Device, a: &Tensor, b: &Tensor, m: u32) -> bool {
    let fits = |t: &Tensor| t.dtype() != DType::F32 && t.dim(-1).is_multiple_of(8) && t.vectors_align(8);
    device.takes_nvidia_kernels() && m > 16 && a.dtype() == b.dtype() && fits(a) && fits(b)
}

const OP: &str = "batched_matmul";

kernel_params! {
    /// Strides in elements.
    struct Params {
        /// The first elements of the batch's entries: of a, b and out.
        walk: Walk,
        /// From row to row of a, b and out.
        strides: [u32; 3],
        m: u32,
        n: u32,
        k: u32,
        /// Threadgroups along the rows of b.
        blocks: u32,
        /// Simdgroups that share the columns of a row of b.
        splits: u32,
    }
}

/// What the kernel is compiled with.
pub(super) fn defines(a: DType, b: DType, whole: bool) -> String {
    matmul::defines(&reader(MatrixFormat::Dense(b)), a, whole) + &format!("\n#define OTHER {}", b.msl())
}

const PARAMS: &[&str] = &[Walk::DECLARATION, Params::DECLARATION];

/// What NVIDIA GPUs have of their own.
pub(super) static NVIDIA: KernelSource =
    KernelSource { name: "batched_matmul/kernel.cu", params: PARAMS, body: include_str!("kernel.cu") };

pub(super) static SOURCE: KernelSource =
    KernelSource { name: "batched_matmul", params: PARAMS, body: include_str!("kernel.metal") };
