//! Rows of a matrix, by number.

mod cpu;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::device::{Gpu, Launch, Stream};
use crate::kernels::{KernelParams, KernelSource, kernel_params};
use crate::matrix::Matrix;
use crate::ops::check::{check, float_entry, size};
use crate::ops::matmul::{MatrixParts, UNIT, parts};
use crate::{DType, Result, Tensor};

/// The rows of `table` that `ids` name, dequantised, times `scale`.
///
/// `ids` is `[tokens]` in u32 or i32, contiguous; the result is `[tokens, columns]` in `dtype`. An id past the last row
/// gives zeros. `scale` is 1 for most models; Gemma multiplies by the root of the width.
///
/// # Errors
///
/// [`Error::Argument`](crate::Error::Argument) where shapes or types do not fit.
///
/// ```
/// use silicide::{DType, Device, Matrix, ops};
/// # fn main() -> silicide::Result<()> {
/// let device = Device::cpu();
/// let stream = &mut device.stream();
/// let table = Matrix::from_tensor(&device.tensor(&[1.0f32, 2.0, 3.0, 4.0], [2, 2])?)?;
/// let ids = device.tensor(&[1u32, 0, 1], [3])?;
/// let rows = ops::embedding(stream, &ids, &table, 1.0, DType::F32)?;
/// assert_eq!(rows.to_vec::<f32>(stream)?, [3.0, 4.0, 1.0, 2.0, 3.0, 4.0]);
/// # Ok(())
/// # }
/// ```
pub fn embedding(stream: &mut Stream, ids: &Tensor, table: &Matrix, scale: f32, dtype: DType) -> Result<Tensor> {
    check(OP, matches!(ids.dtype(), DType::U32 | DType::I32) && ids.rank() == 1 && ids.is_contiguous(), || {
        format!("ids: got {ids:?}, wanted u32 or i32 [tokens], contiguous")
    })?;
    check(OP, dtype.is_float(), || format!("dtype: got {dtype}, wanted f32, f16 or bf16"))?;
    let tokens = ids.elements();
    let out = stream.empty(dtype, [tokens, table.columns()])?;
    if out.elements() == 0 {
        return Ok(out);
    }
    let MatrixParts { defines, group_size } = parts(table, dtype, table.columns().is_multiple_of(UNIT as usize));
    let params = Params {
        code_stride: size(OP, "table", table.code_stride())?,
        tokens: size(OP, "ids", tokens)?,
        rows: size(OP, "table", table.rows())?,
        columns: size(OP, "table", table.columns())?,
        group_size,
        scale,
    };
    let launch = Launch::new(OP, &params)
        .read(ids)
        .read(table.codes())
        .read_optional(table.scales())
        .read_optional(table.biases())
        .write(&out)
        .reads_bytes(tokens * (table.row_bytes() + 4))
        .context(&Arc::new(table.format()));
    stream.launch(launch, float_entry!(dtype, T => cpu::run::<T>), || Gpu {
        source: &SOURCE,
        defines,
        entry: OP.into(),
        threadgroups: [params.tokens, 1, 1],
        threads: [params.columns.div_ceil(16).next_multiple_of(32).min(256), 1, 1],
    })?;
    Ok(out)
}

const OP: &str = "embedding";

kernel_params! {
    /// The table is `rows` rows of `columns`, `code_stride` bytes apart.
    struct Params {
        code_stride: u32,
        tokens: u32,
        rows: u32,
        columns: u32,
        group_size: u32,
        scale: f32,
    }
}

pub(super) static SOURCE: KernelSource =
    KernelSource { name: "embedding", params: &[Params::DECLARATION], body: include_str!("kernel.metal") };
