//! The forms for GPUs.

use super::Params;
use crate::kernels::{KernelParams, KernelSource};
use crate::matrix::MatrixFormat;
use crate::ops::Gate;
use crate::ops::expert_schedule::{ExpertSchedule, Grouped};
use crate::ops::matmul::{Precision, ROWS, SIMDGROUPS};
use crate::quant::QuantFormat;
use crate::{DType, Tensor};

/// An entry point of a kernel, and how much of the result one of its threadgroups computes.
pub(super) struct GpuForm {
    pub(super) source: &'static KernelSource,
    pub(super) entry: &'static str,
    /// Of the weight, of both in turn where there are two.
    pub(super) rows: u32,
    /// Pairs, the most.
    pub(super) pairs: u32,
    pub(super) threads: u32,
    /// Simdgroups that share the columns of a row of the weight.
    pub(super) splits: u32,
    /// Beside what the kernel declares.
    pub(super) threadgroup_memory: u32,
}

impl GpuForm {
    /// The form of `kernel.metal`.
    pub(super) fn plain(grouped: Option<&Grouped>, splits: u32) -> GpuForm {
        let few = |entry, pairs| GpuForm {
            source: &SOURCE,
            entry,
            rows: ROWS * SIMDGROUPS / splits,
            pairs,
            threads: 32 * SIMDGROUPS,
            splits,
            threadgroup_memory: 0,
        };
        match grouped.map(|g| g.rows) {
            None => few("expert_matmul_one", 1),
            Some(..=8) => few("expert_matmul_few", 4),
            Some(_) => GpuForm { entry: "expert_matmul_tiled", rows: 64, pairs: 32, threads: 128, ..few("", 0) },
        }
    }

    /// A form of `kernel.cu` for few pairs of an expert, with so many tiles of pairs.
    fn units(entry: &'static str, pairs: u32, tiles: u32, (n, k): (u32, u32)) -> GpuForm {
        let (tiles, turns) = (tiles * n.div_ceil(TILE), k.div_ceil(COLUMNS));
        // As many simdgroups as run at once on a large GPU. Where there are more, shorter ones leave fewer processors idle in the end, as long
        // as each has four turns.
        let wanted = match tiles {
            0..2048 => 2048u32.div_ceil(tiles.max(1)).min(turns.next_power_of_two()),
            _ => 8192u32.div_ceil(tiles).max(2).min((turns / 4).max(1)),
        };
        let splits = wanted.next_power_of_two().min(SIMDGROUPS);
        let rows = TILE * SIMDGROUPS / splits;
        GpuForm { source: &NVIDIA, entry, rows, pairs, threads: 256, splits, threadgroup_memory: 0 }
    }

    /// A form for many.
    fn tensor(entry: &'static str, pairs: u32) -> GpuForm {
        // Three tiles of rows of x, two of rows of the weight, each of 64 columns.
        let threadgroup_memory = 2 * 64 * (3 * pairs + 2 * 128);
        GpuForm { source: &NVIDIA, entry, rows: 128, pairs, threads: 256, splits: 1, threadgroup_memory }
    }
}

/// Rows of the weight, and the columns of a turn, of the form for few pairs; `kernel.cu` has the same.
const TILE: u32 = 16;
const COLUMNS: u32 = 128;

/// The form of `kernel.cu` that takes the product with `rows` rows of an expert, or why none does.
pub(super) fn tensor_cores(
    x: &Tensor,
    format: MatrixFormat,
    whole: bool,
    schedule: &ExpertSchedule,
    p: &Params,
    rows: u32,
    precision: Precision,
) -> Result<GpuForm, &'static str> {
    if !x.device().takes_nvidia_kernels() {
        return Err("");
    }
    if x.dtype() == DType::F32 {
        return Err("tensor cores take 16 bits, and x is f32");
    }
    if !whole || !x.vectors_align(8) || p.k == 0 {
        return Err("tensor cores want rows of x that are aligned to 16 bytes");
    }
    if precision == Precision::F32 {
        return Err("tensor cores would round the weight to 16 bits");
    }
    if schedule.tokens() == 1 && !is_packed(format, x.dtype()) {
        return Err("for one token tensor cores take codes of 4 bits and weights of x's own type only");
    }
    let tiles = p.pairs.min(p.experts);
    Ok(match schedule.grouped().map(|g| g.rows) {
        None | Some(..=8) => GpuForm::units("expert_matmul_units_8", 8, tiles, (rows, p.k)),
        Some(..=16) => GpuForm::units("expert_matmul_units_16", 16, tiles, (rows, p.k)),
        Some(..=32) => GpuForm::tensor("expert_matmul_tensor_32", 32),
        Some(..=64) => GpuForm::tensor("expert_matmul_tensor_64", 64),
        Some(_) => GpuForm::tensor("expert_matmul_tensor_128", 128),
    })
}

/// Whether `kernels/packed.h` has a form of its own for the format; the others take longer for one token than the plain form.
fn is_packed(format: MatrixFormat, x: DType) -> bool {
    match format {
        MatrixFormat::Dense(dtype) => dtype == x,
        MatrixFormat::Quantized(QuantFormat::Affine { bits: 4, .. }, scales) => scales == x,
        MatrixFormat::Quantized(format, _) => format == QuantFormat::Mxfp4,
    }
}

const PARAMS: &[&str] = &[Gate::DECLARATION, Params::DECLARATION];

pub(in crate::ops) static SOURCE: KernelSource =
    KernelSource { name: "expert_matmul", params: PARAMS, body: include_str!("kernel.metal") };

/// What NVIDIA GPUs have of their own.
pub(in crate::ops) static NVIDIA: KernelSource =
    KernelSource { name: "expert_matmul/kernel.cu", params: PARAMS, body: include_str!("kernel.cu") };
