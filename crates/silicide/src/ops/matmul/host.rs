//! The form for the CPU: rows of another type than f32 are widened on the way in; on the way out sums have their biases and
//! residuals added, or two of them become one as `glu`, and are rounded.

use std::ops::Range;
use std::sync::Arc;

use super::cpu::{self, Factor, Method, PackLayout, Precision, RowsMut};
use super::{Form, GLU, OP, Params, Placed, flops, params};
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::vector::{narrow, vectorized, widen};
use crate::device::cpu::{Call, Entry, Features, View};
use crate::device::{Launch, Stream};
use crate::ops::Gate;
use crate::ops::check::{Rows, float_entry};
use crate::ops::glu::cpu::multiply_gated;
use crate::{DType, Float, Result, Tensor};

/// What the CPU form of `N` products is given beside its tensors.
struct Context<const N: usize> {
    precision: Precision,
    /// The code of a [`Gate`] where there are two products of which one is made.
    glu: Option<u32>,
    parts: [Part; N],
}

/// A packed weight and how its product leaves. Strides are between rows.
struct Part {
    layout: Arc<PackLayout>,
    stride: usize,
    has_bias: bool,
    residual_stride: Option<usize>,
    /// Whether the sums are computed where the result goes, if its type is f32.
    sums_in_out: bool,
}

/// The tensors of a product, after `x`: weight, bias, residual, output.
const TENSORS: usize = 4;

pub(super) fn launch<const N: usize>(
    stream: &mut Stream,
    x: &Tensor,
    x_rows: &Rows,
    products: [Placed; N],
    glu: Option<Gate>,
    precision: Precision,
) -> Result<()> {
    let params = params(x_rows, products.iter().map(|product| product.weight.rows).sum())?;
    let features = stream.device().as_cpu().map_or_else(Features::detect, |cpu| cpu.features());
    let formats = listed(products.iter().map(|product| product.weight.format.to_string()));
    let mut launch = Launch::new(if glu.is_some() { GLU } else { OP }, &params).read_apart_optional(Some(x));
    for (i, product) in products.iter().enumerate() {
        let Form::Packed { bytes, .. } = &product.weight.form else { unreachable!("the CPU's weights are packed") };
        launch = product.bind_added(launch.read_apart_optional(Some(bytes)));
        launch = if glu.is_some() && i > 0 { launch.read_optional(None) } else { product.bind_out(launch) };
    }
    let mut first = true;
    let parts = products.map(|product| {
        let Form::Packed { layout, .. } = &product.weight.form else { unreachable!("as above") };
        let sums_in_out = !product.in_place() && (glu.is_none() || first);
        first = false;
        Part {
            layout: layout.clone(),
            stride: product.stride as usize,
            has_bias: product.bias.is_some(),
            residual_stride: product.residual.map(|_| product.residual_stride as usize),
            sums_in_out,
        }
    });
    let rows = params.m as usize;
    let reasons =
        listed(parts.iter().map(|part| Method::of(&part.layout, features, precision, rows).reason(precision, rows)));
    let context = Arc::new(Context { precision, glu: glu.map(|gate| gate.code()), parts });
    let launch = launch.context(&context).flops(flops(&params)).choice(format!("cpu {formats} {features}"), reasons);
    let entry: Entry = float_entry!(x.dtype(), T => run::<T, N>);
    stream.launch(launch, entry, || unreachable!("the stream is the CPU's"))
}

/// What there is among some strings, each once.
fn listed(all: impl Iterator<Item = String>) -> String {
    let mut once: Vec<String> = Vec::new();
    all.for_each(|s| {
        if !once.contains(&s) {
            once.push(s)
        }
    });
    once.join(" and ")
}

fn run<T: Float, const N: usize>(call: &Call) {
    let p: Params = call.params();
    let Context { precision, glu, parts } = call.context::<Context<N>>();
    let (m, k) = (p.m as usize, p.k as usize);
    let wide = T::DTYPE == DType::F32;
    let in_out = |part: &Part| wide && part.sums_in_out;
    let apart = parts.iter().filter(|part| !in_out(part)).map(|part| m * part.layout.rows()).sum::<usize>();
    with_scratch(if wide { apart } else { apart + m * k }, |scratch: &mut [f32]| {
        let (x, mut rest) = scratch.split_at_mut(if wide { 0 } else { m * k });
        let sums = std::array::from_fn::<_, N, _>(|i| {
            let n = parts[i].layout.rows();
            if in_out(&parts[i]) {
                return Sums { view: call.bits(TENSORS * (i + 1)), stride: parts[i].stride, n };
            }
            let (own, after) = std::mem::take(&mut rest).split_at_mut(m * n);
            rest = after;
            Sums { view: View::over(own), stride: n, n }
        });
        let (x, x_stride) = match wide {
            // SAFETY: nothing writes x.
            true => (unsafe { call.bits(0).row(0, call.bits::<f32>(0).len()) }, p.x_stride as usize),
            false => (widened::<T>(call, &p, x), k),
        };
        let mut factors = std::array::from_fn::<_, N, _>(|i| {
            // SAFETY: nobody else has these sums until the factors are gone.
            let out = unsafe { sums[i].view.row_mut(0, sums[i].view.len()) };
            let out = RowsMut::new(out, m, sums[i].n, sums[i].stride).expect("rows were checked");
            Factor { layout: &parts[i].layout, weight: call.slice::<u8>(TENSORS * i + 1), rows: 0..m, out }
        });
        let x = cpu::Rows::new(x, m, k, x_stride).expect("rows were checked");
        cpu::matmul(call.pool, call.features, *precision, x, &mut factors).expect("shapes were checked");
        match (glu, &sums[..]) {
            (Some(gate), [g, u]) => finish::<T>(
                call,
                &parts[0],
                TENSORS,
                m,
                g,
                #[inline(always)]
                |row, columns, sums| {
                    // SAFETY: no task writes the second factor.
                    multiply_gated(*gate, sums, unsafe { u.view.row(row * u.stride + columns.start, columns.len()) });
                },
            ),
            _ => {
                for (i, (part, sums)) in parts.iter().zip(&sums).enumerate() {
                    let out = TENSORS * (i + 1);
                    let (bias, residual) = (call.view::<T>(out - 2), call.view::<T>(out - 1));
                    if in_out(part) && !part.has_bias && part.residual_stride.is_none() {
                        continue;
                    }
                    finish::<T>(
                        call,
                        part,
                        out,
                        m,
                        sums,
                        #[inline(always)]
                        |row, columns, sums| {
                            if part.has_bias {
                                // SAFETY: nothing writes the bias.
                                add(sums, unsafe { bias.row(columns.start, columns.len()) });
                            }
                            if let Some(stride) = part.residual_stride {
                                // SAFETY: of a residual in place this task writes these elements, when it has read them.
                                add(sums, unsafe { residual.row(row * stride + columns.start, columns.len()) });
                            }
                        },
                    );
                }
            }
        }
    });
}

/// Where the sums of a product are: `n` to a row.
struct Sums<'a> {
    view: View<'a, f32>,
    stride: usize,
    n: usize,
}

/// The rows of x as f32.
fn widened<'a, T: Float>(call: &Call, p: &Params, to: &'a mut [f32]) -> &'a [f32] {
    let k = p.k as usize;
    let (from, rows) = (call.view::<T>(0), View::over(to));
    call.pool.parallel_ranges(p.m as usize, call.grain(k), &|range| {
        vectorized(
            #[inline(always)]
            || {
                for row in range {
                    // SAFETY: nothing writes x, and tasks have disjoint rows.
                    unsafe { widen(from.row(row * p.x_stride as usize, k), rows.row_mut(row * k, k)) };
                }
            },
        );
    });
    to
}

#[inline(always)]
fn add<T: Float>(sums: &mut [f32], to_add: &[T]) {
    const CHUNK: usize = 64;
    let mut wide = [0.0; CHUNK];
    for (sums, to_add) in sums.chunks_mut(CHUNK).zip(to_add.chunks(CHUNK)) {
        widen(to_add, &mut wide);
        sums.iter_mut().zip(&wide).for_each(|(sum, x)| *sum += x);
    }
}

/// Calls `f` for runs of all sums, with their row and columns, and stores them as argument `out`.
fn finish<T: Float>(
    call: &Call,
    part: &Part,
    out: usize,
    m: usize,
    sums: &Sums,
    f: impl Fn(usize, Range<usize>, &mut [f32]) + Sync,
) {
    let (out, n) = (call.view::<T>(out), sums.n);
    let in_out = T::DTYPE == DType::F32 && part.sums_in_out;
    call.pool.parallel_ranges(m * n, call.grain(1), &|range| {
        let mut next = range.start;
        while next < range.end {
            let (row, first) = (next / n, next % n);
            let len = (n - first).min(range.end - next);
            next += len;
            vectorized(
                #[inline(always)]
                || {
                    // SAFETY: tasks have disjoint elements, and the products have ended.
                    let sums = unsafe { sums.view.row_mut(row * sums.stride + first, len) };
                    f(row, first..first + len, sums);
                    if !in_out {
                        // SAFETY: as above, and the sums are elsewhere.
                        narrow(sums, unsafe { out.row_mut(row * part.stride + first, len) });
                    }
                },
            );
        }
    });
}
