//! Rows are dequantised by the plain reader: a token needs one row, and a prompt's rows are shared out.

use half::{bf16, f16};

use super::Params;
use crate::device::cpu::Call;
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::vector::{narrow, vectorized, widen};
use crate::matrix::MatrixFormat;
use crate::quant::QuantView;
use crate::{DType, Float};

pub(super) fn run<T: Float>(call: &Call) {
    let p: Params = call.params();
    let (ids, codes, out) = (call.slice::<u32>(0), call.slice::<u8>(1), call.view::<T>(4));
    let (scales, biases) = (call.slice::<u8>(2), call.slice::<u8>(3));
    let (rows, columns) = (p.rows as usize, p.columns as usize);
    let format: &MatrixFormat = call.context();
    let view = match *format {
        MatrixFormat::Quantized(format, dtype) => {
            Some(QuantView::new(format, rows, columns, codes, scales, biases, dtype).expect("the matrix was checked"))
        }
        MatrixFormat::Dense(_) => None,
    };
    call.pool.parallel_ranges(ids.len(), call.grain(columns), &|tokens| {
        with_scratch(columns, |row| {
            for token in tokens {
                let id = ids[token] as usize;
                // SAFETY: tasks have disjoint tokens.
                let out = unsafe { out.row_mut(token * columns, columns) };
                if id >= rows {
                    out.fill(T::from_f32(0.0));
                    continue;
                }
                vectorized(
                    #[inline(always)]
                    || {
                        match (&view, format) {
                            (Some(view), _) => view.dequantize_row(id, row),
                            (None, MatrixFormat::Dense(dtype)) => {
                                let bytes = &codes[id * columns * dtype.size()..][..columns * dtype.size()];
                                dense_row(*dtype, bytes, row);
                            }
                            (None, MatrixFormat::Quantized(..)) => unreachable!("quantised matrices have a view"),
                        }
                        if p.scale != 1.0 {
                            row.iter_mut().for_each(|x| *x *= p.scale);
                        }
                        narrow(row, out);
                    },
                );
            }
        });
    });
}

/// Widens a row whose bytes may be unaligned.
#[inline(always)]
fn dense_row(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    #[inline(always)]
    fn read<T: Float>(bytes: &[u8], out: &mut [f32]) {
        match bytemuck::try_cast_slice::<u8, T>(bytes) {
            Ok(row) => widen(row, out),
            Err(_) => {
                for (bytes, out) in bytes.chunks_exact(size_of::<T>()).zip(out) {
                    *out = bytemuck::pod_read_unaligned::<T>(bytes).to_f32();
                }
            }
        }
    }
    match dtype {
        DType::F16 => read::<f16>(bytes, out),
        DType::BF16 => read::<bf16>(bytes, out),
        _ => read::<f32>(bytes, out),
    }
}
