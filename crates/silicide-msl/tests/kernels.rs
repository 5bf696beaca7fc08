//! Whole kernels against results in f64.

mod common;

use common::{Job, compile, have_clang};
use half::{bf16, f16};

const NORM: &str = r#"
#include <metal_stdlib>
using namespace metal;

struct Params {
    uint width;
    float eps;
};

template <typename T>
[[kernel]] void rms_norm(
    device const T* x [[buffer(0)]],
    device const T* w [[buffer(1)]],
    device T* out [[buffer(2)]],
    constant Params& p [[buffer(3)]],
    uint row [[threadgroup_position_in_grid]],
    uint tid [[thread_position_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]])
{
    threadgroup float partial[32];
    device const T* in = x + size_t(row) * p.width;
    float sum = 0;
    for (uint i = tid; i < p.width; i += threads) {
        float v = float(in[i]);
        sum += v * v;
    }
    sum = simd_sum(sum);
    if (lane == 0) {
        partial[simdgroup] = sum;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float total = 0;
    for (uint i = 0; i < simdgroups; i++) {
        total += partial[i];
    }
    float scale = rsqrt(total / p.width + p.eps);
    for (uint i = tid; i < p.width; i += threads) {
        out[size_t(row) * p.width + i] = T(float(in[i]) * scale * float(w[i]));
    }
}

#define instantiate_kernel(name, func, ...) \
    template [[host_name(name)]] [[kernel]] decltype(func<__VA_ARGS__>) func<__VA_ARGS__>;

instantiate_kernel("rms_norm_float", rms_norm, float)
instantiate_kernel("rms_norm_half", rms_norm, half)
instantiate_kernel("rms_norm_bfloat", rms_norm, bfloat)
"#;

fn wave(count: usize, step: f64) -> Vec<f64> {
    (0..count).map(|i| (i as f64 * step).sin()).collect()
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Params {
    width: u32,
    eps: f32,
}

fn norm<T: Copy>(kernel: &str, from: fn(f64) -> T, to: fn(T) -> f64, tolerance: f64) {
    let library = compile(NORM);
    let (rows, width) = (3, 200);
    let x: Vec<T> = wave(rows * width, 0.37).into_iter().map(from).collect();
    let w: Vec<T> = wave(width, 0.11).into_iter().map(from).collect();
    for seed in 0..8 {
        let job =
            Job::new(&library, kernel, rows as u32, 96).seed(seed).inline(3, Params { width: width as u32, eps: 1e-5 });
        let mut out = vec![0u8; rows * width * size_of::<T>()];
        job.run(&mut [&mut common::bytes(&x), &mut common::bytes(&w), &mut out]).unwrap_or_else(|e| panic!("{e}"));
        let out: Vec<T> = common::values(&out);
        for row in 0..rows {
            let values: Vec<f64> = x[row * width..][..width].iter().map(|&v| to(v)).collect();
            let mean = values.iter().map(|v| v * v).sum::<f64>() / width as f64;
            for i in 0..width {
                let want = values[i] / (mean + 1e-5).sqrt() * to(w[i]);
                let got = to(out[row * width + i]);
                assert!((got - want).abs() <= tolerance, "{kernel} row {row} column {i}: {got} for {want}");
            }
        }
    }
}

#[test]
fn rms_norm_agrees_with_f64() {
    if !have_clang() {
        return;
    }
    norm("rms_norm_float", |v| v as f32, f64::from, 1e-6);
    norm("rms_norm_half", f16::from_f64, f64::from, 1e-3);
    norm("rms_norm_bfloat", bf16::from_f64, f64::from, 8e-3);
}
