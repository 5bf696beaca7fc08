//! Few rows of 16 bits on NVIDIA's tensor cores: the kernels of `few.cu`.

use super::Params;
use super::gpu::{GpuForm, PARAMS, Product};
use super::stages::aligned;
use crate::kernels::KernelSource;
use crate::matrix::MatrixFormat;
use crate::quant::QuantFormat;
use crate::{DType, Device};

/// The bits of a code of the formats that `few.cu` takes.
pub(in crate::ops) fn bits(format: MatrixFormat) -> Option<u32> {
    match format {
        MatrixFormat::Quantized(QuantFormat::Affine { bits: bits @ (4 | 8), .. }, DType::F16 | DType::BF16) => {
            Some(bits.into())
        }
        _ => None,
    }
}

/// The form for affine codes of 4 or 8 bits and at most [`MOST`] rows of x, or none.
pub(super) fn form(device: &Device, p: &Params, products: &[Product]) -> Option<GpuForm> {
    let (bits, group) = (bits(products[0].matrix.format())?, p.group_size);
    if p.m > MOST || p.k == 0 || !aligned(products) {
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
    // Tiles of four bits go in pairs, for which two threadgroups run at once on a processor, or three without; the last tiles of all
    // find some of them idle. A tile alone takes a little longer.
    let busy = |at_once: u32| {
        let threadgroups = (at_once * processors).max(1);
        f64::from(tiles) / f64::from(threadgroups * tiles.div_ceil(threadgroups))
    };
    let alone = group <= 64 && 0.95 * busy(3) > busy(2);
    let pairs = bits == 4 && tokens == 8 && (wide || !alone);
    let at_once = match (wide, pairs) {
        (true, _) => 1,
        (false, false) if bits == 4 && tokens == 8 => 3,
        _ => 2,
    };
    let entries = match group {
        32 => ENTRIES_32,
        64 => ENTRIES_64,
        128 => ENTRIES_128,
        _ => return None,
    };
    let entry = entries[match (tokens, wide) {
        (16, _) => 4,
        (_, true) => 2 + usize::from(pairs),
        _ => usize::from(pairs),
    }];
    // The stages of all simdgroups, and twice their parts of the sums.
    let rows = if pairs { 2 * TILE } else { TILE };
    let stage = rows * (COLUMNS * bits / 8 + 2 * 2 * COLUMNS / group);
    let part = 4 * (rows + 4) * tokens;
    let memory = simdgroups * (DEPTH * stage + 2 * part);
    (memory <= device.nvidia_threadgroup_memory()).then_some(GpuForm {
        source: &SOURCE,
        entry,
        rows: TILE,
        tokens,
        threads: 32 * simdgroups,
        splits: 1,
        threadgroup_memory: memory,
        at_most: processors * at_once,
    })
}

macro_rules! entries {
    ($group:literal) => {
        [
            concat!("matmul_tensor_few_", $group),
            concat!("matmul_tensor_few_", $group, "_pairs"),
            concat!("matmul_tensor_few_", $group, "_wide"),
            concat!("matmul_tensor_few_", $group, "_wide_pairs"),
            concat!("matmul_tensor_few_", $group, "_sixteen"),
        ]
    };
}
const ENTRIES_32: [&str; 5] = entries!("32");
const ENTRIES_64: [&str; 5] = entries!("64");
const ENTRIES_128: [&str; 5] = entries!("128");

/// Rows of x, here and in `groups.cu`.
pub(super) const MOST: u32 = 16;
/// Rows of a tile; columns of a stage, and stages of a simdgroup; `few.cu` has the same.
const TILE: u32 = 16;
const COLUMNS: u32 = 256;
const DEPTH: u32 = 2;

pub(in crate::ops) static SOURCE: KernelSource =
    KernelSource { name: "matmul/few.cu", params: PARAMS, body: include_str!("few.cu") };
