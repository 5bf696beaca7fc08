//! Few rows of 16 bits on NVIDIA's tensor cores: the kernels of `few.cu`.

use super::Params;
use super::gpu::{GpuForm, Product};
use crate::kernels::{KernelParams, KernelSource};
use crate::matrix::{Matrix, MatrixFormat};
use crate::quant::QuantFormat;
use crate::{DType, Device};

/// The form for affine codes of 4 or 8 bits and at most 16 rows of x, or none.
pub(super) fn form(device: &Device, p: &Params, products: &[Product]) -> Option<GpuForm> {
    let MatrixFormat::Quantized(QuantFormat::Affine { bits: bits @ (4 | 8), .. }, scales) = products[0].matrix.format()
    else {
        return None;
    };
    let (bits, group) = (u32::from(bits), p.group_size);
    let aligned = |part: Option<&crate::Tensor>| part.is_none_or(|t| t.byte_range().start.is_multiple_of(16));
    let aligned = |m: &Matrix| aligned(m.scales()) && aligned(m.biases());
    if scales == DType::F32 || p.m > 16 || p.k == 0 || !products.iter().all(|p| aligned(p.matrix)) {
        return None;
    }
    let tiles: u32 = p.n.iter().map(|n| n.div_ceil(TILE)).sum();
    let processors = device.processors().unwrap_or(1);
    // Few tiles keep a processor busy only where as many simdgroups as it has registers for share each.
    let wide = p.m <= 8
        && tiles <= 2 * processors
        && p.k >= 16 * COLUMNS
        && matches!(device.compute_capability(), Some((9, _)));
    let simdgroups = if wide { 16 } else { 8 };
    let tokens = if p.m <= 8 { 8 } else { 16 };
    let entry = match (group, wide, tokens) {
        (32, true, _) => "matmul_tensor_few_32_wide",
        (32, _, 8) => "matmul_tensor_few_32",
        (32, ..) => "matmul_tensor_few_32_sixteen",
        (64, true, _) => "matmul_tensor_few_64_wide",
        (64, _, 8) => "matmul_tensor_few_64",
        (64, ..) => "matmul_tensor_few_64_sixteen",
        (128, true, _) => "matmul_tensor_few_128_wide",
        (128, _, 8) => "matmul_tensor_few_128",
        (128, ..) => "matmul_tensor_few_128_sixteen",
        _ => return None,
    };
    // The stages of all simdgroups, and twice their parts of the sums.
    let rows = if bits == 4 && tokens == 8 { 2 * TILE } else { TILE };
    let stage = rows * (COLUMNS * bits / 8 + 2 * 2 * COLUMNS / group);
    let part = 4 * (rows + 4) * tokens;
    Some(GpuForm {
        source: &SOURCE,
        entry,
        rows: TILE,
        tokens,
        threads: 32 * simdgroups,
        splits: 1,
        threadgroup_memory: simdgroups * (DEPTH * stage + 2 * part),
        // As many as run at once.
        at_most: processors * if wide { 1 } else { 2 },
    })
}

/// Rows of a tile; columns of a stage, and stages of a simdgroup; `few.cu` has the same.
const TILE: u32 = 16;
const COLUMNS: u32 = 256;
const DEPTH: u32 = 2;

pub(in crate::ops) static SOURCE: KernelSource =
    KernelSource { name: "matmul/few.cu", params: &[Params::DECLARATION], body: include_str!("few.cu") };
