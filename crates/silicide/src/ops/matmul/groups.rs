//! Few rows of 16 bits on NVIDIA's tensor cores with a weight of any format: the kernels of `groups.cu`.

use super::Params;
use super::gpu::{GpuForm, PARAMS, Product};
use crate::kernels::KernelSource;
use crate::matrix::{Matrix, MatrixFormat};
use crate::quant::{GgmlFormat, QuantFormat};
use crate::{DType, Device};

/// The form for any format whose elements, before they are scaled, `x`'s type has, and at most 16 rows of x; or none.
pub(super) fn form(device: &Device, x: DType, p: &Params, products: &[Product]) -> Option<GpuForm> {
    let matrix = products[0].matrix;
    // Of a stage of a row the bytes of its codes, and of scales and biases in the smallest groups that there are; and floats that are
    // made of these.
    let (codes, factors, floats) = match matrix.format() {
        MatrixFormat::Dense(dtype) if dtype == x => (256, 0, 0),
        MatrixFormat::Dense(_) => return None,
        MatrixFormat::Quantized(format, scales) => {
            let codes = format.row_bytes(COLUMNS as usize) as u32;
            let factors = match format {
                QuantFormat::Affine { .. } => 2 * 8 * scales.size() as u32,
                QuantFormat::Ggml(_) => 0,
                QuantFormat::Nvfp4 => 16,
                _ => 8,
            };
            (codes, factors, factors_of(format))
        }
    };
    let aligned = |part: Option<&crate::Tensor>| part.is_none_or(|t| t.byte_range().start.is_multiple_of(16));
    let aligned = |m: &Matrix| aligned(Some(m.codes())) && aligned(m.scales()) && aligned(m.biases());
    // Rows of formats whose stages are whole chunks begin on one.
    let even = codes.is_multiple_of(16);
    if !(1..=16).contains(&p.m)
        || p.k == 0
        || !p.k.is_multiple_of(32)
        || even && !p.code_stride.is_multiple_of(16)
        // Scales that lie apart come a stage at a time.
        || factors != 0 && !p.k.is_multiple_of(COLUMNS)
        // Rows that begin anywhere cost more to bring than one row of x is worth.
        || !even && p.m == 1
        || !products.iter().all(|p| aligned(p.matrix))
    {
        return None;
    }
    let (entry, tokens) = if p.m <= 8 { ("matmul_tensor_groups_8", 8) } else { ("matmul_tensor_groups_16", 16) };
    // A row that begins anywhere may take a chunk more.
    let chunks = if even { codes / 16 } else { (codes + 30) / 16 };
    let stage = TILE * ((chunks | 1) * 16 + factors);
    let part = 4 * (TILE + 4) * tokens;
    let memory = 8 * (DEPTH * stage + 4 * TILE * floats + 2 * part);
    // Four threadgroups of a processor have registers enough where theirs are of eight rows, without minimums.
    let at_once = if p.m <= 8 && 4 * memory <= MEMORY { 4 } else { 2 };
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

/// Rows of a tile; columns of a stage of a quantised format, and stages of a simdgroup; `groups.cu` has the same.
const TILE: u32 = 16;
const COLUMNS: u32 = 256;
const DEPTH: u32 = 2;
/// Threadgroup memory of a processor, less what each threadgroup has besides.
const MEMORY: u32 = (228 - 4) << 10;

pub(in crate::ops) static SOURCE: KernelSource =
    KernelSource { name: "matmul/groups.cu", params: PARAMS, body: include_str!("groups.cu") };
