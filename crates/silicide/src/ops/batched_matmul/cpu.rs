//! Each entry's `b` is packed as a weight is, once for the entries that share it, and multiplied as weights are.

use super::Params;
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::vector::{narrow, vectorized, widen};
use crate::device::cpu::{Call, Features};
use crate::ops::matmul::cpu::{DenseView, Factor, Method, PackLayout, Precision, Rows, RowsMut, matmul};
use crate::{DType, Float, Result};

/// What parameters cannot hold.
pub(super) struct Context {
    layout: PackLayout,
    precision: Precision,
}

impl Context {
    pub(super) fn new(dtype: DType, n: u32, k: u32, precision: Precision) -> Result<Context> {
        Ok(Context { layout: PackLayout::dense(dtype, n as usize, k as usize)?, precision })
    }

    /// What `explain` says of it.
    pub(super) fn reason(&self, features: Features, m: u32) -> String {
        Method::of(&self.layout, features, self.precision, m as usize).reason(self.precision, m as usize)
    }
}

pub(super) fn run<T: Float>(call: &Call) {
    let p: Params = call.params();
    let Context { layout, precision } = call.context();
    let (m, n, k) = (p.m as usize, p.n as usize, p.k as usize);
    let [a_stride, b_stride, out_stride] = p.strides.map(|s| s as usize);
    let (a, b, out) = (call.view::<T>(0), call.bits::<u8>(1), call.view::<T>(2));
    // SAFETY: nothing writes b.
    let b = unsafe { b.row(0, b.len()) };
    let dtype = call.dtype(1);
    let size = dtype.size();
    with_scratch(layout.bytes(), |packed: &mut [u8]| {
        with_scratch(m * (k + n), |wide: &mut [f32]| {
            with_scratch(n * k * size, |rows: &mut [u8]| {
                let (wide_a, wide_out) = wide.split_at_mut(m * k);
                let mut packed_from = None;
                for entry in 0..p.walk.row_count() as usize * p.walk.row_len() {
                    let (row, i) = (entry / p.walk.row_len(), entry % p.walk.row_len());
                    let start = p.walk.start(row);
                    let [at_a, at_b, at_out] = [0, 1, 2].map(|operand| start[operand] + i * p.walk.stride(operand));
                    if packed_from.replace(at_b) != Some(at_b) {
                        let of_row = |r: usize| &b[(at_b + r * b_stride) * size..][..k * size];
                        let bytes = if n == 1 || b_stride == k {
                            &b[at_b * size..][..n * k * size]
                        } else {
                            rows.chunks_exact_mut(k * size)
                                .enumerate()
                                .for_each(|(r, to)| to.copy_from_slice(of_row(r)));
                            &*rows
                        };
                        let view = DenseView { dtype, bytes };
                        layout.pack_dense(view, packed, call.pool).expect("sizes were checked");
                    }
                    vectorized(
                        #[inline(always)]
                        || {
                            for (r, to) in wide_a.chunks_exact_mut(k).enumerate() {
                                // SAFETY: nothing writes a.
                                widen(unsafe { a.row(at_a + r * a_stride, k) }, to);
                            }
                        },
                    );
                    let x = Rows::new(wide_a, m, k, k).expect("the scratch holds m rows");
                    let to = RowsMut::new(wide_out, m, n, n).expect("as above");
                    let mut factors = [Factor { layout, weight: packed, rows: 0..m, out: to }];
                    matmul(call.pool, call.features, *precision, x, &mut factors).expect("shapes were checked");
                    vectorized(
                        #[inline(always)]
                        || {
                            for (r, from) in wide_out.chunks_exact(n).enumerate() {
                                // SAFETY: nobody else has the output.
                                narrow(from, unsafe { out.row_mut(at_out + r * out_stride, n) });
                            }
                        },
                    );
                }
            });
        });
    });
}
