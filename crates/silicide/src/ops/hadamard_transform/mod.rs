//! The Walsh-Hadamard transform of rows.

pub(super) mod cpu;
#[cfg(test)]
mod tests;

use crate::device::{Gpu, Launch, Stream};
use crate::kernels::{KernelParams, KernelSource, kernel_params};
use crate::ops::check::{check, float_entry};
use crate::ops::walk::Walk;
use crate::{DType, Device, Result, Tensor};

/// Signs around a [`hadamard_transform`].
///
/// Signs are u32 `[ceil(n / 32)]`, contiguous: bit `i % 32` of word `i / 32` is set where element `i` changes its sign.
/// [`hadamard_signs`] makes random ones.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hadamard<'a> {
    /// Signs that `x` is multiplied by.
    pub signs_before: Option<&'a Tensor>,
    /// Signs that the result is multiplied by. The same signs after undo what they did before.
    pub signs_after: Option<&'a Tensor>,
}

/// The orthonormal Walsh-Hadamard transform of the last axis: `y[i] = sum((-1)^popcount(i & k) * x[k]) / sqrt(n)`.
///
/// `x` is `[.., n]` in f32, f16 or bf16, with any strides; `n` is a power of two up to 8192. Sums are kept in f32 and
/// the result, which has `x`'s shape and type, is rounded once. The transform is its own inverse and keeps a row's
/// norm. With random signs before, it spreads a row's outliers over all its elements. A row with a NaN becomes NaN
/// throughout; one with an infinity has no finite element left.
///
/// Mathematics: the Sylvester order of Hadamard's matrix; randomised as in Ailon and Chazelle, "The Fast
/// Johnson-Lindenstrauss Transform", 2009.
///
/// # Errors
///
/// [`Error::Argument`](crate::Error::Argument) where shapes or types do not fit.
///
/// ```
/// use silicide::{Device, ops};
/// # fn main() -> silicide::Result<()> {
/// let device = Device::cpu();
/// let stream = &mut device.stream();
/// let x = device.tensor(&[4.0f32, 2.0, 0.0, 0.0], [4])?;
/// let y = ops::hadamard_transform(stream, &x, ops::Hadamard::default())?;
/// assert_eq!(y.to_vec::<f32>(stream)?, [3.0, 1.0, 3.0, 1.0]);
///
/// // A random rotation, and back.
/// let signs = ops::hadamard_signs(&device, 4, 7)?;
/// let there = ops::Hadamard { signs_before: Some(&signs), ..Default::default() };
/// let back = ops::Hadamard { signs_after: Some(&signs), ..Default::default() };
/// let rotated = ops::hadamard_transform(stream, &x, there)?;
/// assert_eq!(ops::hadamard_transform(stream, &rotated, back)?.to_vec::<f32>(stream)?, [4.0, 2.0, 0.0, 0.0]);
/// # Ok(())
/// # }
/// ```
pub fn hadamard_transform(stream: &mut Stream, x: &Tensor, options: Hadamard) -> Result<Tensor> {
    let out = stream.empty(x.dtype(), *x.shape())?;
    hadamard_transform_into(stream, x, options, &out)?;
    Ok(out)
}

/// [`hadamard_transform`] into `out`, which may be `x` itself.
pub fn hadamard_transform_into(stream: &mut Stream, x: &Tensor, options: Hadamard, out: &Tensor) -> Result<()> {
    let dtype = x.dtype();
    check(OP, dtype.is_float() && x.rank() > 0, || format!("x: got {x:?}, wanted rows of f32, f16 or bf16"))?;
    check(OP, out.shape() == x.shape() && out.dtype() == dtype, || format!("out: got {out:?}, wanted {x:?}"))?;
    let n = x.dim(-1);
    check(OP, n.is_power_of_two() && n <= LONGEST, || {
        format!("x: got rows of {n}, wanted a power of two up to {LONGEST}")
    })?;
    for (name, signs) in [("signs_before", options.signs_before), ("signs_after", options.signs_after)] {
        signs.map_or(Ok(()), |signs| check_signs(OP, name, signs, n))?;
    }
    if x.elements() == 0 {
        return Ok(());
    }
    let params = Params {
        walk: Walk::rows(OP, &[x, out])?,
        scale: (1.0 / (n as f64).sqrt()) as f32,
        width: n.min(32) as u32,
        has_before: options.signs_before.is_some().into(),
        has_after: options.signs_after.is_some().into(),
    };
    let launch = Launch::new(OP, &params)
        .read(x)
        .read_apart_optional(options.signs_before)
        .read_apart_optional(options.signs_after)
        .write_in_place(out)
        .flops(x.elements() * (n.ilog2() as usize + 1));
    stream.launch(launch, float_entry!(dtype, T => cpu::run::<T>), || {
        let (rows, simdgroups) = (params.walk.row_count(), form(n).1);
        let (threadgroups, threads) = match simdgroups {
            1 => {
                let threads = (rows.min(ROW_THREADS) * params.width).next_multiple_of(32).min(ROW_THREADS);
                (rows.div_ceil(threads / params.width), threads)
            }
            _ => (rows, 32 * simdgroups as u32),
        };
        Gpu {
            source: &SOURCE,
            defines: defines(n),
            entry: format!("hadamard_transform_{dtype}"),
            threadgroups: [threadgroups, 1, 1],
            threads: [threads, 1, 1],
        }
    })
}

/// Random signs for rows of `n`, as [`Hadamard`] takes them: the same ones for a seed on every device.
///
/// # Errors
///
/// [`Error::Argument`](crate::Error::Argument) where `n` is not a power of two up to 8192.
pub fn hadamard_signs(device: &Device, n: usize, seed: u64) -> Result<Tensor> {
    check(OP, n.is_power_of_two() && n <= LONGEST, || format!("n: got {n}, wanted a power of two up to {LONGEST}"))?;
    // SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014).
    let word = |i: usize| {
        let mut z = seed.wrapping_add((i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 32) as u32
    };
    let words: Vec<u32> = (0..n.div_ceil(32)).map(word).collect();
    device.tensor(&words, [words.len()])
}

/// Whether a tensor holds the signs of rows of `n`.
pub(super) fn check_signs(op: &'static str, name: &str, signs: &Tensor, n: usize) -> Result<()> {
    let words = n.div_ceil(32);
    check(op, signs.dtype() == DType::U32 && signs.shape()[..] == [words] && signs.is_contiguous(), || {
        format!("{name}: got {signs:?}, wanted u32[{words}], contiguous: a bit for each of {n}")
    })
}

const OP: &str = "hadamard_transform";

/// Threadgroup memory holds a row.
const LONGEST: usize = 8192;

/// Threads in a threadgroup whose simdgroups have rows of their own.
const ROW_THREADS: u32 = 128;

/// Elements that a thread holds, and simdgroups that a row has.
fn form(n: usize) -> (usize, usize) {
    let per_thread = n.div_ceil(32).min(16);
    (per_thread, n.div_ceil(32 * per_thread))
}

/// What the kernel is compiled with.
pub(super) fn defines(n: usize) -> String {
    let (per_thread, simdgroups) = form(n);
    format!("#define PER_THREAD {per_thread}\n#define SIMDGROUPS {simdgroups}")
}

kernel_params! {
    struct Params {
        walk: Walk,
        /// One over the root of a row's length.
        scale: f32,
        /// Lanes of a simdgroup that work on one row.
        width: u32,
        has_before: u32,
        has_after: u32,
    }
}

pub(super) static SOURCE: KernelSource = KernelSource {
    name: "hadamard_transform",
    params: &[Walk::DECLARATION, Params::DECLARATION],
    body: include_str!("kernel.metal"),
};
