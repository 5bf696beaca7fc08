//! Few rows of 16 bits on NVIDIA's tensor cores with a weight of any format: the kernels of `units.cu`.

use super::Params;
use super::gpu::{GpuForm, PARAMS, Product};
use crate::kernels::KernelSource;
use crate::matrix::{Matrix, MatrixFormat};
use crate::quant::QuantFormat;
use crate::{DType, Device};

/// The form for any format whose elements, before they are scaled, `x`'s type has, from 2 to 16 rows of x; or none.
/// One row is left to the plain form, which is faster.
pub(super) fn form(device: &Device, x: DType, p: &Params, products: &[Product]) -> Option<GpuForm> {
    let matrix = products[0].matrix;
    // Bytes of a stage of a row: its codes, and scales and biases in the smallest groups that there are.
    let (columns, codes, factors) = match matrix.format() {
        MatrixFormat::Dense(dtype) if dtype == x => (128, 256, 0),
        MatrixFormat::Dense(_) => return None,
        MatrixFormat::Quantized(format, scales) => {
            let codes = matrix.row_bytes() as u32 / (p.k / COLUMNS).max(1);
            let factors = match format {
                QuantFormat::Affine { .. } => 2 * 8 * scales.size() as u32,
                QuantFormat::Ggml(_) => 0,
                _ => 16,
            };
            (COLUMNS, codes, factors)
        }
    };
    let aligned = |part: Option<&crate::Tensor>| part.is_none_or(|t| t.byte_range().start.is_multiple_of(16));
    let aligned = |m: &Matrix| aligned(Some(m.codes())) && aligned(m.scales()) && aligned(m.biases());
    if !(2..=16).contains(&p.m)
        || p.k == 0
        || !p.k.is_multiple_of(columns)
        || !products.iter().all(|p| aligned(p.matrix))
    {
        return None;
    }
    let (entry, tokens) = if p.m <= 4 { ("matmul_tensor_units_4", 4) } else { ("matmul_tensor_units_8", 8) };
    // A row that begins anywhere may take a chunk more.
    let chunks = if codes.is_multiple_of(16) { codes / 16 } else { (codes + 30) / 16 };
    let stage = TILE * ((chunks | 1) * 16 + factors);
    let part = 4 * (TILE + 4) * tokens;
    Some(GpuForm {
        source: &SOURCE,
        entry,
        rows: TILE,
        tokens,
        threads: 256,
        splits: 1,
        threadgroup_memory: 8 * (DEPTH * stage + 2 * part),
        // As many as run at once.
        at_most: 2 * device.processors().unwrap_or(1) / p.m.div_ceil(tokens),
    })
}

/// Rows of a tile; columns of a stage of a quantised format, and stages of a simdgroup; `units.cu` has the same.
const TILE: u32 = 16;
const COLUMNS: u32 = 256;
const DEPTH: u32 = 2;

pub(in crate::ops) static SOURCE: KernelSource =
    KernelSource { name: "matmul/units.cu", params: PARAMS, body: include_str!("units.cu") };
