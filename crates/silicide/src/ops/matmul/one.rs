//! One row of 16 bits on NVIDIA's tensor cores with a quantised weight of any format: the kernel of `one.cu`.

use super::Params;
use super::gpu::{GpuForm, PARAMS, Product};
use super::stages::{Stage, fit};
use crate::kernels::KernelSource;
use crate::matrix::MatrixFormat;
use crate::quant::{GgmlFormat, QuantFormat};
use crate::{DType, Device};

/// The form for one row of x, or none.
pub(super) fn form(device: &Device, x: DType, p: &Params, products: &[Product]) -> Option<GpuForm> {
    let MatrixFormat::Quantized(format, _) = products[0].matrix.format() else { return None };
    let bytes = format.row_bytes(256);
    let columns = if bytes <= 160 { 512 } else { 256 };
    let stage = Stage::of(products[0].matrix.format(), p.k, TILE, columns, if bytes == 128 { 4 } else { 0 });
    if p.m != 1 || !stage.takes(p, products) {
        return None;
    }
    let tiles: u32 = p.n.iter().map(|n| n.div_ceil(TILE)).sum();
    let processors = device.processors().unwrap_or(1);
    // The pairs of x, a run of zeros and what is summed of x; the parts of sums.
    let columns = p.k.next_multiple_of(columns);
    let of_x = 2 * columns + 64 + 4 * columns / 32 * totals(format, x);
    let memory = |at_once: u32| {
        let simdgroups = SIMDGROUPS / at_once;
        let parts = simdgroups + tiles.div_ceil(processors * at_once);
        simdgroups * DEPTH * stage.bytes + of_x + 4 * TILE * parts
    };
    // Two threadgroups run at once on a processor, which have the launches before and after beside them; or one of twice as many
    // simdgroups, where it takes long, or the last tiles of all would find more of them idle.
    let busy = |at_once: u32| {
        let threadgroups = at_once * processors;
        f64::from(tiles) / f64::from(threadgroups * tiles.div_ceil(threadgroups))
    };
    let two = fit(2, memory(2)) && tiles <= 50 * processors && busy(2) > 0.93 * busy(1);
    let at_once = if two { 2 } else { 1 };
    (memory(at_once) <= device.nvidia_threadgroup_memory()).then_some(GpuForm {
        source: &SOURCE,
        entry: "matmul_tensor_one",
        rows: TILE,
        tokens: 1,
        threads: 32 * SIMDGROUPS / at_once,
        splits: 1,
        threadgroup_memory: memory(at_once),
        at_most: at_once * processors,
    })
}

/// Numbers that a format's kernel keeps of each 32 columns of x.
fn totals(format: QuantFormat, x: DType) -> u32 {
    use GgmlFormat::{Q2_K, Q4_0, Q4_1, Q4_K, Q5_1, Q5_K, Q6_K};
    match format {
        QuantFormat::Ggml(Q2_K) | QuantFormat::Affine { bits: 4, .. } => 2,
        QuantFormat::Ggml(Q6_K) if x == DType::BF16 => 2,
        QuantFormat::Affine { .. } | QuantFormat::Ggml(Q4_0 | Q4_1 | Q5_1 | Q4_K | Q5_K) => 1,
        _ => 0,
    }
}

/// Rows of a tile, and stages of a simdgroup; `one.cu` has the same.
const TILE: u32 = 8;
const DEPTH: u32 = 2;
/// Simdgroups of a processor, for which it has registers.
const SIMDGROUPS: u32 = 24;

pub(in crate::ops) static SOURCE: KernelSource =
    KernelSource { name: "matmul/one.cu", params: PARAMS, body: include_str!("one.cu") };
