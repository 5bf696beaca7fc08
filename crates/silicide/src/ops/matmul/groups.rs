//! Few rows of 16 bits on NVIDIA's tensor cores with a weight of any format: the kernels of `groups.cu`.

use super::gpu::{GpuForm, PARAMS, Product};
use super::stages::{Stage, fit};
use super::{Params, few};
use crate::kernels::KernelSource;
use crate::matrix::MatrixFormat;
use crate::quant::{GgmlFormat, QuantFormat};
use crate::{DType, Device};

/// The form for any format whose elements, before they are scaled, `x`'s type has, and at most [`few::MOST`] rows of x; or none.
pub(super) fn form(device: &Device, x: DType, p: &Params, products: &[Product]) -> Option<GpuForm> {
    let format = products[0].matrix.format();
    // Columns of a stage, and floats of a row that are made of its scales and minimums.
    let (columns, floats) = match format {
        MatrixFormat::Dense(dtype) if dtype == x => (128, 0),
        MatrixFormat::Dense(_) => return None,
        MatrixFormat::Quantized(format, _) => (256, factors_of(format)),
    };
    let stage = Stage::of(format, p.k, TILE, columns, 0);
    if !(1..=few::MOST).contains(&p.m) || !stage.takes(p, products) {
        return None;
    }
    let (entry, tokens) = if p.m <= 8 { ("matmul_tensor_groups_8", 8) } else { ("matmul_tensor_groups_16", 16) };
    let part = 4 * (TILE + 4) * tokens;
    let memory = 8 * (DEPTH * stage.bytes + 4 * TILE * floats + 2 * part);
    // Four threadgroups of a processor have registers enough where theirs are of eight rows, without minimums.
    let at_once = if p.m <= 8 && fit(4, memory) { 4 } else { 2 };
    (memory <= device.nvidia_threadgroup_memory()).then_some(GpuForm {
        source: &SOURCE,
        entry,
        rows: TILE,
        tokens,
        threads: 256,
        splits: 1,
        threadgroup_memory: memory,
        at_most: at_once * device.processors().unwrap_or(1),
    })
}

/// Scales of a row of a stage as floats, and minimums, and the gaps between rows.
const fn factors_of(format: QuantFormat) -> u32 {
    use GgmlFormat::{Q2_K, Q3_K, Q4_1, Q4_K, Q5_1, Q5_K, Q6_K};
    let groups = match format {
        QuantFormat::Nvfp4 | QuantFormat::Ggml(Q2_K | Q3_K | Q6_K) => 16,
        _ => 8,
    };
    let minimum = matches!(format, QuantFormat::Affine { .. } | QuantFormat::Ggml(Q4_1 | Q5_1 | Q2_K | Q4_K | Q5_K));
    (groups + 4) * if minimum { 2 } else { 1 }
}

/// Rows of a tile, and stages of a simdgroup; `groups.cu` has the same.
const TILE: u32 = 16;
const DEPTH: u32 = 2;

pub(in crate::ops) static SOURCE: KernelSource =
    KernelSource { name: "matmul/groups.cu", params: PARAMS, body: include_str!("groups.cu") };
