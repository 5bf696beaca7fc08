//! How kernels that include `rows.h` share rows among threads.

use crate::{DType, Tensor};

/// The threads of a row, and how many make a launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Teams {
    /// Threads of a row: a power of two up to 32, or all of a threadgroup.
    pub(crate) width: u32,
    pub(crate) threadgroups: [u32; 3],
    pub(crate) threads: [u32; 3],
}

impl Teams {
    /// For rows of `len` elements of `dtype`, of which a lane takes `each` packets while a simdgroup is enough.
    pub(crate) fn new(rows: u32, len: u32, dtype: DType, each: u32) -> Teams {
        /// Packets that a thread holds.
        const HELD: u32 = 2;
        /// Threads of a threadgroup of several teams.
        const THREADS: u32 = 128;
        let packets = len.div_ceil(packet(dtype) as u32);
        let lanes = packets.div_ceil(each);
        // What is as short as a head is one simdgroup's, as in the kernel that normalises heads.
        if lanes <= 32 || packets <= 32 * HELD || len <= 512 {
            let width = lanes.next_power_of_two().min(32);
            let threads = rows.saturating_mul(width).next_multiple_of(32).min(THREADS);
            return Teams { width, threadgroups: [rows.div_ceil(threads / width), 1, 1], threads: [threads, 1, 1] };
        }
        let width = packets.div_ceil(HELD).next_multiple_of(32).min(1024);
        Teams { width, threadgroups: [rows, 1, 1], threads: [width, 1, 1] }
    }
}

/// Elements of 16 bytes.
pub(crate) fn packet(dtype: DType) -> usize {
    16 / dtype.size()
}

/// What a source that asks for WHOLE is compiled with.
pub(crate) fn whole(whole: bool) -> String {
    format!("#define WHOLE {whole}")
}

/// What a source is compiled with whose results are of `dtype`: whether its gates may be as rough as 16 bits are.
pub(crate) fn quick(dtype: DType) -> &'static str {
    if dtype == DType::F32 { "" } else { "\n#define QUICK" }
}

/// Whether rows of `len` elements are whole packets of `n`, which lie aligned in every tensor.
pub(crate) fn packets_align(len: usize, n: usize, tensors: &[Option<&Tensor>]) -> bool {
    len.is_multiple_of(n) && tensors.iter().flatten().all(|t| t.vectors_align(n))
}

/// Threads by axis of a threadgroup for a grid of three axes, of which the first is filled first.
pub(crate) fn block(x: u32, y: u32, z: u32) -> [u32; 3] {
    const THREADS: u32 = 256;
    /// What CUDA allows along the last axis.
    const DEEPEST: u32 = 64;
    let x = x.clamp(1, THREADS);
    let y = y.clamp(1, THREADS / x);
    [x, y, z.clamp(1, (THREADS / (x * y)).min(DEEPEST))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::*;
    use crate::testing::{Random, on_every_device, rounded, tensor_of, values_of};
    use crate::{Shape, Stream};

    /// The values as a tensor whose packets are aligned, and as one that has none.
    fn both(stream: &Stream, dtype: DType, values: &[f32], shape: [usize; 3]) -> [Tensor; 2] {
        let device = stream.device();
        let [a, b, len] = shape;
        let gaps: Vec<f32> = values.chunks(len).flat_map(|row| [&[9.0], row].concat()).collect();
        let gaps = tensor_of(device, dtype, &gaps, [a, b, len + 1]).slice(2, 1..len + 1).unwrap();
        [tensor_of(device, dtype, values, shape), gaps]
    }

    #[test]
    fn packets_give_what_elements_give() {
        type Op = fn(&mut Stream, &Tensor, &Tensor, &Tensor) -> crate::Result<Tensor>;
        let ops: &[(&str, Op)] = &[
            ("rms_norm", |s, x, _, w| rms_norm(s, x, w, 1e-6)),
            ("rms_norm_with", |s, x, y, w| {
                let sum = s.empty(x.dtype(), *x.shape())?;
                let (weight, residual) = (Some(w), Some(y));
                let options = RmsNormOptions { weight, weight_offset: 1.0, eps: 1e-6, residual, sum: Some(&sum) };
                let out = s.empty(x.dtype(), *x.shape())?;
                rms_norm_with(s, x, options, &out)?;
                binary(s, Binary::Add, &out, &sum)
            }),
            ("l2_norm", |s, x, _, _| l2_norm(s, x, 1e-6)),
            ("layer_norm", |s, x, _, w| {
                let out = s.empty(x.dtype(), *x.shape())?;
                layer_norm_into(s, x, Some(w), Some(w), 1e-6, &out)?;
                Ok(out)
            }),
            ("rms_norm_gated", |s, x, y, w| rms_norm_gated(s, x, y, w, 1e-6)),
            ("softmax", |s, x, y, _| softmax(s, x, Softmax { scale: 0.5, mask: Some(y) })),
            ("unary", |s, x, _, _| unary(s, Unary::Silu, x)),
            ("binary", |s, x, y, _| binary(s, Binary::Sub, x, y)),
            ("binary by a row", |s, x, _, w| binary(s, Binary::Mul, x, w)),
            ("binary by a number", |s, x, _, _| binary(s, Binary::Div, x, 3.0)),
            ("glu", |s, x, y, _| glu(s, Gate::GeluTanh, x, y)),
            ("select", |s, x, y, _| {
                let less = compare(s, Compare::Less, x, y)?;
                select(s, &less, x, y)
            }),
            ("select a number", |s, x, _, _| {
                let less = compare(s, Compare::LessEqual, x, 0.0)?;
                select(s, &less, 7.0, x)
            }),
            ("reduce", |s, x, _, _| reduce(s, Reduce::Mean, x)),
            ("kv_write", |s, x, y, _| {
                let slots = s.device().tensor(&(0..x.dim(0) as u32).rev().collect::<Vec<_>>(), [x.dim(0)])?;
                // Of another type, and aligned as x is.
                let wide = Shape::new(&[x.dim(0), x.dim(1), x.strides()[1]]).expect("three axes");
                let caches = [0, 1].map(|_| {
                    let cache = s.device().zeros(DType::F16, wide).unwrap();
                    cache.slice(2, x.strides()[1] - x.dim(2)..x.strides()[1]).unwrap()
                });
                kv_write(s, x, y, &slots, &caches[0], &caches[1])?;
                binary(s, Binary::Sub, &caches[0], &caches[1])
            }),
        ];
        on_every_device(|stream| {
            let random = &mut Random::new(7);
            for (i, shape) in [[5, 3, 64], [3, 5, 352], [2, 1, 1_120], [1, 2, 17_600]].into_iter().enumerate() {
                for dtype in DType::FLOATS {
                    let mut values = || rounded(dtype, &random.values(shape.iter().product()));
                    let (x, y) = (both(stream, dtype, &values(), shape), both(stream, dtype, &values(), shape));
                    let wide = if i % 2 == 0 { DType::F32 } else { dtype };
                    let weights = random.values(shape[2] + 1);
                    let spare = tensor_of(stream.device(), wide, &weights, [shape[2] + 1]);
                    let odd = spare.slice(0, 1..shape[2] + 1).unwrap();
                    let even = tensor_of(stream.device(), wide, &weights[1..], [shape[2]]);
                    for (name, op) in ops {
                        // What takes its weight as an operand has it in one type.
                        if name.starts_with("binary by a row") && wide != dtype {
                            continue;
                        }
                        let run = |stream: &mut Stream, i: usize, w: &Tensor| {
                            let out = op(stream, &x[i], &y[i], w).unwrap();
                            values_of(stream, &out)
                        };
                        let (packed, single) = (run(stream, 0, &even), run(stream, 1, &odd));
                        let slack = if dtype == DType::F32 && *name != "kv_write" { 1e-5 } else { 1e-2 };
                        for (i, (p, s)) in packed.iter().zip(&single).enumerate() {
                            assert!((p - s).abs() <= slack * (1.0 + s.abs()), "{name} {dtype} {shape:?} {i}: {p}, {s}");
                        }
                        assert_eq!(packed.len(), single.len());
                    }
                }
            }
        });
    }
}
