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

const MATVEC: &str = r#"
#include <metal_stdlib>
#include <metal_simdgroup>
using namespace metal;

template <typename T, int ROWS>
struct Rows {
    float sums[ROWS] = {0};
    void add(int row, float4 w, float4 x) { accumulate(sums[row], dot(w, x)); }
    void accumulate(thread float& sum, float x) { sum += x; }
};

// Four rows a simdgroup, four columns a lane.
template <typename T, int ROWS = 4>
[[kernel]] void matvec(
    const device T* w [[buffer(0)]], const device T* x [[buffer(1)]], device T* y [[buffer(2)]],
    const constant int2& shape [[buffer(3)]],
    uint group [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
    using T4 = vec<T, 4>;
    int first = int(group * simdgroups + simdgroup) * ROWS;
    if (first >= shape.x) return;
    Rows<T, ROWS> rows;
    for (int c = int(lane) * 4; c < shape.y; c += 128) {
        float4 v = float4(*reinterpret_cast<const device T4*>(x + c));
        for (int r = 0; r < ROWS && first + r < shape.x; r++) {
            rows.add(r, float4(*(const device T4*)(w + (first + r) * shape.y + c)), v);
        }
    }
#pragma clang loop unroll(full)
    for (int r = 0; r < ROWS; r++) {
        float sum = simd_sum(rows.sums[r]);
        if (lane == 0 && first + r < shape.x) y[first + r] = static_cast<T>(sum);
    }
}

template [[host_name("matvec_float")]] [[kernel]] void matvec<float>(
    const device float* w [[buffer(0)]], const device float* x [[buffer(1)]], device float* y [[buffer(2)]],
    const constant int2& shape [[buffer(3)]], uint, uint, uint, uint);
template [[host_name("matvec_half")]] [[kernel]] decltype(matvec<half>) matvec<half>;
template [[host_name("matvec_" "bfloat")]] [[kernel]] decltype(matvec<bfloat, 2>) matvec<bfloat, 2>;
"#;

fn matvec<T: Copy>(kernel: &str, rows_each: usize, from: fn(f64) -> T, to: fn(T) -> f64, tolerance: f64) {
    let library = compile(MATVEC);
    let (rows, columns) = (37, 260);
    let w: Vec<T> = wave(rows * columns, 0.7).into_iter().map(from).collect();
    let x: Vec<T> = wave(columns, 1.3).into_iter().map(from).collect();
    let groups = rows.div_ceil(rows_each * 2) as u32;
    for seed in 0..3 {
        let job = Job::new(&library, kernel, groups, 64).seed(seed).inline(3, [rows as i32, columns as i32]);
        let mut y = vec![0u8; rows * size_of::<T>()];
        job.run(&mut [&mut common::bytes(&w), &mut common::bytes(&x), &mut y]).unwrap_or_else(|e| panic!("{e}"));
        for (row, got) in common::values::<T>(&y).into_iter().enumerate() {
            let want: f64 = (0..columns).map(|c| to(w[row * columns + c]) * to(x[c])).sum();
            assert!(
                (to(got) - want).abs() <= tolerance * (1.0 + want.abs()),
                "{kernel} row {row}: {} for {want}",
                to(got)
            );
        }
    }
}

#[test]
fn matvec_agrees_with_f64() {
    if !have_clang() {
        return;
    }
    matvec("matvec_float", 4, |v| v as f32, f64::from, 1e-5);
    matvec("matvec_half", 4, f16::from_f64, f64::from, 1e-3);
    matvec("matvec_bfloat", 2, bf16::from_f64, f64::from, 8e-3);
}

#[test]
fn a_reduction_is_right_in_every_order() {
    if !have_clang() {
        return;
    }
    let library = compile(
        r#"
#include <metal_stdlib>
using namespace metal;
kernel void sum(device const int* x [[buffer(0)]], device int* out [[buffer(1)]],
                threadgroup int* shared [[threadgroup(0)]],
                uint t [[thread_position_in_threadgroup]], uint g [[threadgroup_position_in_grid]],
                uint threads [[threads_per_threadgroup]]) {
    shared[t] = x[g * threads + t];
    for (uint half_way = threads / 2; half_way > 0; half_way /= 2) {
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (t < half_way) shared[t] += shared[t + half_way];
    }
    if (t == 0) out[g] = shared[0];
}
"#,
    );
    let x: Vec<i32> = (0..8 * 256).map(|i| i * 7919 % 1000).collect();
    let want: Vec<i32> = x.chunks(256).map(|chunk| chunk.iter().sum()).collect();
    for seed in 0..8 {
        let mut job = Job::new(&library, "sum", 8, 256).seed(seed).memory(0, 1024);
        job.schedule.workers = 1 + seed as usize % 3;
        assert_eq!(job.output::<i32, i32>(&[&x], 8), want);
    }
}

#[test]
fn matrices_multiply() {
    if !have_clang() {
        return;
    }
    let source = r#"
#include <metal_stdlib>
#include <metal_simdgroup_matrix>
using namespace metal;
// C = A B for 16x24 and 24x16 matrices, one 8x8 tile a simdgroup.
template <typename T>
[[kernel]] void matmul(device const T* a [[buffer(0)]], device const T* b [[buffer(1)]], device float* c [[buffer(2)]],
                       uint tile [[simdgroup_index_in_threadgroup]], uint t [[thread_index_in_threadgroup]]) {
    threadgroup T shared[24 * 16];
    for (uint i = t; i < 24 * 16; i += 128) shared[i] = b[i];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    uint row = tile / 2 * 8, column = tile % 2 * 8;
    simdgroup_matrix<float, 8, 8> sum = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    for (uint k = 0; k < 24; k += 8) {
        simdgroup_matrix<T, 8, 8> x, y;
        simdgroup_load(x, a + row * 24 + k, 24);
        simdgroup_load(y, shared + k * 16, 16, ulong2(column, 0), false);
        simdgroup_multiply_accumulate(sum, x, y, sum);
    }
    sum.thread_elements()[0] *= 2;
    sum.thread_elements()[1] *= 2;
    simdgroup_store(sum, c + row * 16 + column, 16);
}
template [[host_name("float")]] [[kernel]] decltype(matmul<float>) matmul<float>;
template [[host_name("half")]] [[kernel]] decltype(matmul<half>) matmul<half>;
template [[host_name("bfloat")]] [[kernel]] decltype(matmul<bfloat>) matmul<bfloat>;

kernel void transpose(device const float* a [[buffer(0)]], device float* b [[buffer(1)]]) {
    simdgroup_float8x8 m, d = simdgroup_float8x8(3.0f);
    simdgroup_load(m, a, 8, ulong2(0, 0), true);
    simdgroup_store(m * d, b);
}
"#;
    let library = compile(source);
    let a: Vec<i32> = (0..16 * 24).map(|i| i * 5 % 13 - 6).collect();
    let b: Vec<i32> = (0..24 * 16).map(|i| i * 3 % 11 - 5).collect();
    let want = |i: usize| (0..24).map(|k| 2 * a[i / 16 * 24 + k] * b[k * 16 + i % 16]).sum::<i32>() as f32;
    for kernel in ["float", "half", "bfloat"] {
        let convert = |m: &[i32]| match kernel {
            "float" => common::bytes(&m.iter().map(|&v| v as f32).collect::<Vec<_>>()),
            "half" => common::bytes(&m.iter().map(|&v| f16::from_f32(v as f32)).collect::<Vec<_>>()),
            _ => common::bytes(&m.iter().map(|&v| bf16::from_f32(v as f32)).collect::<Vec<_>>()),
        };
        let mut c = vec![0u8; 1024];
        let job = Job::new(&library, kernel, 1, 128).seed(1);
        job.run(&mut [&mut convert(&a), &mut convert(&b), &mut c]).unwrap_or_else(|error| panic!("{error}"));
        for (i, got) in common::values::<f32>(&c).into_iter().enumerate() {
            assert_eq!(got, want(i), "{kernel} at {i}");
        }
    }
    let m: Vec<f32> = (0..64).map(|i| i as f32).collect();
    let out: Vec<f32> = Job::new(&library, "transpose", 1, 32).output(&[&m], 64);
    assert!(out.iter().enumerate().all(|(i, &v)| v == 3.0 * m[i % 8 * 8 + i / 8]), "{out:?}");
    let partial = Job::new(&library, "transpose", 1, 16).run(&mut [&mut common::bytes(&m), &mut vec![0; 256]]);
    assert!(partial.expect_err("too few lanes").to_string().contains("all 32 lanes"));
}

#[test]
fn kernels_run_without_checks() {
    if !have_clang() {
        return;
    }
    let options = silicide_msl::CompileOptions { checks: false, ..Default::default() };
    let library = silicide_msl::Library::compile(NORM, &options).unwrap_or_else(|error| panic!("{error}"));
    let mut job = Job::new(&library, "rms_norm_float", 16, 128).inline(3, Params { width: 8, eps: 0.0 });
    job.schedule.workers = 0;
    let mut out = vec![0; 16 * 8 * 4];
    let (x, w) = (vec![-2f32; 16 * 8], vec![3f32; 8]);
    job.run(&mut [&mut common::bytes(&x), &mut common::bytes(&w), &mut out]).expect("runs");
    assert_eq!(common::values::<f32>(&out), [-3.0; 16 * 8]);
}
