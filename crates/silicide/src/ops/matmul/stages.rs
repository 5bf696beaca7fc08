//! How `kernels/stages.h` lays down a stage.

use super::Params;
use super::gpu::Product;
use crate::Tensor;
use crate::matrix::{Matrix, MatrixFormat};
use crate::quant::QuantFormat;

/// A stage of some rows and columns.
pub(super) struct Stage {
    /// Of threadgroup memory.
    pub(super) bytes: u32,
    /// Whether its rows begin on 16 bytes.
    pub(super) even: bool,
}

impl Stage {
    /// The stages of rows of `k` columns. Rows lie `gap` chunks apart, or as few as leave an odd number of them.
    pub(super) fn of(format: MatrixFormat, k: u32, rows: u32, columns: u32, gap: u32) -> Stage {
        let codes = match format {
            MatrixFormat::Dense(dtype) => columns * dtype.size() as u32,
            MatrixFormat::Quantized(format, _) => format.row_bytes(columns as usize) as u32,
        };
        let even = codes.is_multiple_of(16);
        let chunks = if even { codes / 16 } else { (codes + 32) / 16 };
        let pitch = 16 * if gap != 0 { chunks + gap } else { chunks | 1 };
        // Rows of scales that begin anywhere take a word more; biases take as much again.
        let (scale, parts) = match format {
            MatrixFormat::Dense(_) | MatrixFormat::Quantized(QuantFormat::Ggml(_), _) => (0, 0),
            MatrixFormat::Quantized(format @ QuantFormat::Affine { .. }, scales) => {
                (columns / format.group_size() as u32 * scales.size() as u32, 2)
            }
            MatrixFormat::Quantized(format, _) => (columns / format.group_size() as u32, 1),
        };
        let slack = if k.is_multiple_of(columns) { 0 } else { 4 };
        let factors = (scale + slack).next_multiple_of(16) * parts;
        Stage { bytes: rows * (pitch + factors), even }
    }

    /// Whether its copies find the weights of the products where they want them.
    pub(super) fn takes(&self, p: &Params, products: &[Product]) -> bool {
        p.k != 0 && p.k.is_multiple_of(32) && (!self.even || p.code_stride.is_multiple_of(16)) && aligned(products)
    }
}

/// Whether all that weights are stored in begins on 16 bytes.
pub(super) fn aligned(products: &[Product]) -> bool {
    let aligned = |part: Option<&Tensor>| part.is_none_or(|t| t.byte_range().start.is_multiple_of(16));
    let matrix = |m: &Matrix| aligned(Some(m.codes())) && aligned(m.scales()) && aligned(m.biases());
    products.iter().all(|product| matrix(product.matrix))
}

/// Whether a processor of Hopper has memory for so many threadgroups at once, each of which takes a KiB besides.
pub(super) fn fit(threadgroups: u32, memory: u32) -> bool {
    threadgroups * (memory + (1 << 10)) <= 228 << 10
}
