//! The standard library, group by group, against values known from elsewhere.

mod common;

use common::{Job, compile, have_clang};

/// Expressions and what they should be.
type Table = &'static [(&'static str, fn(f64) -> f64)];

/// Each expression in `float x`, `uint u` or what else the body declares, over all inputs.
fn evaluate(setup: &str, expressions: &[&str], inputs: &[f32]) -> Vec<Vec<f32>> {
    let count = expressions.len();
    let lines: String =
        expressions.iter().enumerate().map(|(i, e)| format!("  out[t * {count} + {i}] = float({e});\n")).collect();
    let source = format!(
        "#include <metal_stdlib>\nusing namespace metal;\nkernel void f(device const float* in [[buffer(0)]],\n\
         device float* out [[buffer(1)]], uint t [[thread_position_in_grid]]) {{\n  float x = in[t];\n{setup}\n{lines}}}\n"
    );
    let library = compile(&source);
    let out: Vec<f32> = Job::new(&library, "f", 1, inputs.len() as u32).output(&[inputs], inputs.len() * count);
    out.chunks(count).map(<[f32]>::to_vec).collect()
}

fn check(setup: &str, table: Table, inputs: &[f32], tolerance: f64) {
    let expressions: Vec<_> = table.iter().map(|(expression, _)| *expression).collect();
    for (row, &x) in evaluate(setup, &expressions, inputs).iter().zip(inputs) {
        for (&got, (expression, want)) in row.iter().zip(table) {
            let want = want(f64::from(x));
            let close = (f64::from(got) - want).abs() <= tolerance * want.abs().max(1.0);
            assert!(
                close || f64::from(got) == want || (got.is_nan() && want.is_nan()),
                "{expression} at {x}: {got} for {want}"
            );
        }
    }
}

const INPUTS: [f32; 12] = [-3.5, -2.5, -1.0, -0.3, -0.0, 0.0, 0.25, 0.5, 1.0, 1.5, 2.5, 10.25];

#[test]
fn math() {
    if !have_clang() {
        return;
    }
    let table: Table = &[
        ("exp(x)", f64::exp),
        ("exp2(x)", f64::exp2),
        ("exp10(x)", |x| 10f64.powf(x)),
        ("log(x)", f64::ln),
        ("log2(x)", f64::log2),
        ("log10(x)", f64::log10),
        ("sqrt(x)", f64::sqrt),
        ("rsqrt(x)", |x| 1.0 / x.sqrt()),
        ("sin(x)", f64::sin),
        ("cos(x)", f64::cos),
        ("tan(x)", f64::tan),
        ("asin(x)", f64::asin),
        ("acos(x)", f64::acos),
        ("atan(x)", f64::atan),
        ("sinh(x)", f64::sinh),
        ("cosh(x)", f64::cosh),
        ("tanh(x)", f64::tanh),
        ("asinh(x)", f64::asinh),
        ("acosh(x)", f64::acosh),
        ("atanh(x)", f64::atanh),
        ("atan2(x, 2.0f)", |x| x.atan2(2.0)),
        ("pow(x, 2.0f)", |x| x.powi(2)),
        ("pow(2.0f, x)", f64::exp2),
        ("fmod(x, 1.25f)", |x| x % 1.25),
        ("floor(x)", f64::floor),
        ("ceil(x)", f64::ceil),
        ("trunc(x)", f64::trunc),
        ("round(x)", f64::round),
        ("rint(x)", f64::round_ties_even),
        ("abs(x)", f64::abs),
        ("fabs(x)", f64::abs),
        ("fract(x)", |x| x - x.floor()),
        ("sign(x)", |x| {
            if x > 0.0 {
                1.0
            } else if x < 0.0 {
                -1.0
            } else {
                0.0
            }
        }),
        ("min(x, 1.0f)", |x| x.min(1.0)),
        ("max(x, 1.0f)", |x| x.max(1.0)),
        ("clamp(x, -1.0f, 1.0f)", |x| x.clamp(-1.0, 1.0)),
        ("saturate(x)", |x| x.clamp(0.0, 1.0)),
        ("fma(x, x, 1.0f)", |x| x * x + 1.0),
        ("mix(x, 4.0f, 0.25f)", |x| x * 0.75 + 1.0),
        ("step(1.0f, x)", |x| f64::from(x >= 1.0)),
        ("copysign(2.0f, x)", |x| 2f64.copysign(x)),
        ("sincos(x, c) + c", |x| x.sin() + x.cos()),
        ("select(1.0f, 2.0f, x > 0)", |x| if x > 0.0 { 2.0 } else { 1.0 }),
        ("ldexp(x, 3)", |x| x * 8.0),
        ("frexp(x, e) * exp2(float(e))", |x| x),
        ("precise::exp(x)", f64::exp),
        ("fast::exp(x)", f64::exp),
        ("metal::precise::sqrt(abs(x))", |x| x.abs().sqrt()),
        ("1.0 / 3.0 == 1.0f / 3.0f ? 1 : 0", |_| 1.0),
    ];
    check("float c; int e;", table, &INPUTS, 2e-6);
    // The same functions for half and for vectors.
    let table: Table = &[
        ("exp(h)", f64::exp),
        ("tanh(h)", f64::tanh),
        ("rsqrt(h)", |x| 1.0 / x.sqrt()),
        ("max(h, half(0.5))", |x| x.max(0.5)),
        ("exp(h2).y", f64::exp),
        ("tanh(v).z", f64::tanh),
        ("max(v, 0.5f).w", |x| x.max(0.5)),
        ("clamp(v, 0.0f, 1.0f).x", |x| x.clamp(0.0, 1.0)),
        ("abs(v).x", f64::abs),
        ("fma(v, v, v).y", |x| x * x + x),
        ("dot(v, v)", |x| 4.0 * x * x),
        ("length(v.xy)", |x| (2.0 * x * x).sqrt()),
        ("cross(v.xyz, float3(0, 0, 1)).x", |x| x),
        ("select(v, -v, v < 0.0f).x", f64::abs),
        ("all(v == v.wzyx) ? 1 : 0", |_| 1.0),
        ("any(isnan(v)) ? 1 : 0", |_| 0.0),
    ];
    check("half h = half(x); half2 h2 = half2(h); float4 v = float4(x);", table, &INPUTS, 2e-3);
}

#[test]
fn classes_and_limits() {
    if !have_clang() {
        return;
    }
    let inputs = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1.0, -0.0];
    let table: Table = &[
        ("isnan(x)", |x| f64::from(x.is_nan())),
        ("isinf(x)", |x| f64::from(x.is_infinite())),
        ("isfinite(x)", |x| f64::from(x.is_finite())),
        ("signbit(x) && !isnan(x)", |x| f64::from(x.is_sign_negative() && !x.is_nan())),
        ("max(x, 2.0f)", |x| x.max(2.0)),
        ("min(x, 2.0f)", |x| x.min(2.0)),
        ("numeric_limits<float>::max()", |_| f64::from(f32::MAX)),
        ("numeric_limits<float>::lowest()", |_| f64::from(f32::MIN)),
        ("-numeric_limits<float>::infinity()", |_| f64::NEG_INFINITY),
        ("numeric_limits<float>::epsilon()", |_| f64::from(f32::EPSILON)),
        ("numeric_limits<half>::max()", |_| 65504.0),
        ("numeric_limits<bfloat>::max()", |_| f64::from(half::bf16::MAX)),
        ("numeric_limits<int>::min()", |_| f64::from(i32::MIN)),
        ("numeric_limits<uchar>::max()", |_| 255.0),
        ("INFINITY", |_| f64::INFINITY),
        ("NAN", |_| f64::NAN),
        ("M_PI_F", |_| f64::from(std::f32::consts::PI)),
    ];
    check("", table, &inputs, 1e-7);
}

#[test]
fn integers() {
    if !have_clang() {
        return;
    }
    let inputs = [0.0, 1.0, 2.0, 100.0, 255.0, 65536.0];
    let table: Table = &[
        ("popcount(u)", |x| f64::from((x as u32).count_ones())),
        ("clz(u)", |x| f64::from((x as u32).leading_zeros())),
        ("ctz(u)", |x| f64::from((x as u32).trailing_zeros())),
        ("clz(ushort(u & 0xffff))", |x| f64::from((x as u32 as u16).leading_zeros())),
        ("popcount(uchar(u & 255))", |x| f64::from((x as u32 as u8).count_ones())),
        ("reverse_bits(u) >> 16", |x| f64::from((x as u32).reverse_bits() >> 16)),
        ("rotate(u, 31u) >> 16", |x| f64::from((x as u32).rotate_left(31) >> 16)),
        ("mulhi(u, 0xffffffffu)", |x| f64::from(((x as u64 * 0xffff_ffff) >> 32) as u32)),
        ("absdiff(u, 50u)", |x| f64::from((x as u32).abs_diff(50))),
        ("extract_bits(u, 1, 3)", |x| f64::from(x as u32 >> 1 & 7)),
        ("insert_bits(0u, u, 4, 4)", |x| f64::from((x as u32 & 15) << 4)),
        ("addsat(uchar(200), uchar(u & 255))", |x| f64::from(200u8.saturating_add(x as u32 as u8))),
        ("abs(-int(u))", |x| x),
        ("min(int(u), 7)", |x| x.min(7.0)),
        ("as_type<uint>(float(u)) >> 23", |x| f64::from((x as f32).to_bits() >> 23)),
        ("as_type<uchar4>(u).y", |x| f64::from(x as u32 >> 8 & 255)),
        ("as_type<half2>(0x3c004000u).y", |_| 1.0),
        ("uint2(u, 3).y * 2", |_| 6.0),
        ("int4(uchar4(1, 2, 3, 4)).w", |_| 4.0),
        ("(u & 3u) == 0u ? 5 : 6", |x| if x as u32 & 3 == 0 { 5.0 } else { 6.0 }),
    ];
    check("uint u = uint(x);", table, &inputs, 0.0);
}

#[test]
fn types_and_conversions() {
    if !have_clang() {
        return;
    }
    let setup = "float4 v = float4(x, 1, float2(2, 3)); half4 h = half4(v); bfloat b = bfloat(x);\n\
        vec<bfloat, 4> bv = vec<bfloat, 4>(v); using T4 = vec<float, 4>; T4 c = T4(h) + static_cast<float4>(bv);\n\
        float3 three = v.xyz; three.zy = float2(7, 8); packed_float3 p = packed_float3(three); v.w += 1;\n\
        array<float, 3> a = {1, 2, 3};";
    let table: Table = &[
        ("v.x", |x| x),
        ("v.yzw.z", |_| 4.0),
        ("v.rgba.b", |_| 2.0),
        ("v[2]", |_| 2.0),
        ("h.w", |_| 3.0),
        ("float(b)", |x| f64::from(half::bf16::from_f64(x))),
        ("b * b", |x| {
            let b = half::bf16::from_f64(x);
            f64::from(b * b)
        }),
        ("bv.z", |_| 2.0),
        ("c.y", |_| 2.0),
        ("three.y + three.z * 10", |_| 78.0),
        ("float3(p).z", |_| 7.0),
        ("((float4)h).w", |_| 3.0),
        ("((half4)v).y", |_| 1.0),
        ("sizeof(packed_float3)", |_| 12.0),
        ("sizeof(float3)", |_| 16.0),
        ("sizeof(half3)", |_| 8.0),
        ("sizeof(bfloat)", |_| 2.0),
        ("a[1]", |_| 2.0),
        ("is_same_v<T4, float4> ? 1 : 0", |_| 1.0),
        ("short(x) + uchar(3)", |x| x.trunc() + 3.0),
    ];
    check(setup, table, &INPUTS, 1e-9);
}

/// A simdgroup operation and its result in each lane.
type Lane = (&'static str, fn(usize) -> f32);

/// Runs simdgroup operations on lanes that hold 1, 2, ...: each expression is a kernel, run over so many threads.
fn lanes(expressions: &[(&str, u32)]) -> Vec<Vec<f32>> {
    let kernels: String = expressions
        .iter()
        .enumerate()
        .map(|(i, (expression, _))| {
            format!(
                "kernel void f{i}(device float* out [[buffer(0)]], uint lane [[thread_index_in_simdgroup]],\n\
                 uint t [[thread_index_in_threadgroup]]) {{\n\
                 float x = lane + 1; int i = lane + 1; uint u = lane + 1; half h = half(x); bfloat b = bfloat(x);\n\
                 out[t] = float({expression});\n}}\n"
            )
        })
        .collect();
    let library = compile(&format!("#include <metal_stdlib>\nusing namespace metal;\n{kernels}"));
    let run = |(i, &(expression, threads)): (usize, &(&str, u32))| {
        let name = format!("f{i}");
        let run = |seed| Job::new(&library, &name, 1, threads).seed(seed).output::<u8, f32>(&[], threads as usize);
        let first = run(0);
        assert!(
            (1..3).all(|seed| format!("{:?}", run(seed)) == format!("{first:?}")),
            "{expression} depends on the schedule"
        );
        first
    };
    expressions.iter().enumerate().map(run).collect()
}

#[test]
fn simdgroup_operations() {
    if !have_clang() {
        return;
    }
    let table: &[Lane] = &[
        ("simd_sum(x)", |_| 528.0),
        ("simd_sum(float4(x)).w", |_| 528.0),
        ("simd_sum(i)", |_| 528.0),
        ("simd_sum(h)", |_| 528.0),
        ("simd_sum(b)", |_| 528.0),
        ("simd_max(x)", |_| 32.0),
        ("simd_min(-i)", |_| -32.0),
        ("simd_max(h)", |_| 32.0),
        ("simd_product(select(1.0f, 2.0f, lane < 5))", |_| 32.0),
        ("simd_or(u)", |_| 63.0),
        ("simd_and(u | 64u)", |_| 64.0),
        ("simd_xor(u)", |_| 32.0),
        ("simd_prefix_exclusive_sum(x)", |lane| (lane * (lane + 1) / 2) as f32),
        ("simd_prefix_inclusive_sum(i)", |lane| ((lane + 1) * (lane + 2) / 2) as f32),
        ("simd_prefix_inclusive_product(select(1, 2, lane % 8 == 0))", |lane| 2f32.powi(lane as i32 / 8 + 1)),
        ("simd_shuffle(x, 5)", |_| 6.0),
        ("simd_shuffle(x, ushort(31 - lane))", |lane| 32.0 - lane as f32),
        ("simd_shuffle_xor(h, 3)", |lane| (lane ^ 3) as f32 + 1.0),
        ("simd_shuffle_up(x, 2)", |lane| if lane < 2 { lane as f32 + 1.0 } else { lane as f32 - 1.0 }),
        ("simd_shuffle_down(x, 2)", |lane| if lane > 29 { lane as f32 + 1.0 } else { lane as f32 + 3.0 }),
        ("simd_shuffle_rotate_down(x, 1)", |lane| ((lane + 1) % 32) as f32 + 1.0),
        ("simd_shuffle_rotate_up(x, 1)", |lane| ((lane + 31) % 32) as f32 + 1.0),
        ("simd_broadcast(x, 7)", |_| 8.0),
        ("simd_broadcast_first(x)", |_| 1.0),
        ("simd_shuffle(float4(x, 2, 3, x), 4).w", |_| 5.0),
        ("popcount(uint(ulong(simd_ballot(lane % 3 == 0))))", |_| 11.0),
        ("simd_all(x > 0) && !simd_all(x > 1) && simd_any(x > 31) && !simd_any(x > 32)", |_| 1.0),
        ("simd_is_first()", |lane| f32::from(u8::from(lane == 0))),
        ("quad_sum(x)", |lane| (lane / 4 * 16 + 10) as f32),
        ("quad_max(i)", |lane| (lane / 4 * 4 + 4) as f32),
        ("quad_shuffle_xor(x, 1)", |lane| (lane ^ 1) as f32 + 1.0),
        ("quad_broadcast(x, 2)", |lane| (lane / 4 * 4) as f32 + 3.0),
    ];
    let expressions: Vec<_> = table.iter().map(|(expression, _)| (*expression, 64)).collect();
    for (got, (expression, want)) in lanes(&expressions).iter().zip(table) {
        for (t, got) in got.iter().enumerate() {
            assert_eq!(*got, want(t % 32), "{expression} in lane {t}");
        }
    }

    // The last of these simdgroups has 8 lanes, and only lanes that take part count.
    let partial = lanes(&[
        ("simd_sum(x)", 40),
        ("simd_all(x < 9)", 40),
        ("simd_shuffle(x, 20)", 40),
        ("lane < 8 ? simd_sum(x) : -1", 32),
    ]);
    assert_eq!(partial[0][32..], [36.0; 8]);
    assert_eq!(partial[1][32..], [1.0; 8]);
    assert!(partial[2][39].is_nan());
    assert_eq!((partial[3][0], partial[3][7], partial[3][8]), (36.0, 36.0, -1.0));
}

#[test]
fn atomics() {
    if !have_clang() {
        return;
    }
    let library = compile(
        r#"
#include <metal_stdlib>
using namespace metal;
kernel void f(device atomic_uint* u [[buffer(0)]], device atomic_int* i [[buffer(1)]], device atomic_float* x [[buffer(2)]],
              device uint* out [[buffer(3)]],
              uint g [[thread_position_in_grid]], uint t [[thread_position_in_threadgroup]]) {
    threadgroup atomic_uint local;
    if (t == 0) atomic_store_explicit(&local, 0, memory_order_relaxed);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    atomic_fetch_add_explicit(&local, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&u[0], g, memory_order_relaxed);
    atomic_fetch_max_explicit(&u[1], g, memory_order_relaxed);
    atomic_fetch_min_explicit(&i[0], -int(g), memory_order_relaxed);
    atomic_fetch_or_explicit(&u[2], 1u << (g & 31), memory_order_relaxed);
    atomic_fetch_add_explicit(&x[0], 0.5f, memory_order_relaxed);
    uint old = atomic_load_explicit(&u[3], memory_order_relaxed);
    while (!atomic_compare_exchange_weak_explicit(&u[3], &old, old + 2, memory_order_relaxed, memory_order_relaxed)) {}
    threadgroup_barrier(mem_flags::mem_threadgroup);
    out[g] = atomic_load_explicit(&local, memory_order_relaxed);
}
"#,
    );
    for seed in 0..4 {
        let mut job = Job::new(&library, "f", 16, 64).seed(seed);
        job.schedule.workers = 4;
        let (mut u, mut i, mut x) = (vec![0; 16], vec![0; 4], vec![0; 4]);
        let mut out = vec![0; 16 * 64 * 4];
        job.run(&mut [&mut u, &mut i, &mut x, &mut out]).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(common::values::<u32>(&u), [1023 * 512, 1023, u32::MAX, 2048]);
        assert_eq!(common::values::<i32>(&i), [-1023]);
        assert_eq!(common::values::<f32>(&x), [512.0]);
        assert_eq!(common::values::<u32>(&out), [64; 1024]);
    }
}

#[test]
fn positions() {
    if !have_clang() {
        return;
    }
    let library = compile(
        r#"
#include <metal_stdlib>
using namespace metal;
kernel void f(device uint* out [[buffer(0)]],
    uint3 grid [[thread_position_in_grid]], uint3 local [[thread_position_in_threadgroup]],
    ushort3 group [[threadgroup_position_in_grid]], uint3 size [[threads_per_threadgroup]],
    const uint3 groups [[threadgroups_per_grid]], uint3 all [[threads_per_grid]],
    uint index [[thread_index_in_threadgroup]], ushort lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]], uint simdgroups [[simdgroups_per_threadgroup]],
    uint width [[threads_per_simdgroup]]) {
    device uint* o = out + 19 * (grid.x + all.x * (grid.y + all.y * grid.z));
    o[0] = local.x; o[1] = local.y; o[2] = local.z; o[3] = group.x; o[4] = group.y; o[5] = group.z;
    o[6] = size.x; o[7] = size.y; o[8] = size.z; o[9] = groups.x; o[10] = groups.y; o[11] = groups.z;
    o[12] = index; o[13] = lane; o[14] = simdgroup; o[15] = simdgroups; o[16] = width; o[17] = all.y; o[18] = 1;
}
"#,
    );
    let mut job = Job::new(&library, "f", 1, 1).seed(3);
    (job.threadgroups, job.threads) = ([2, 3, 2], [4, 5, 3]);
    let out: Vec<u32> = job.output::<u8, u32>(&[], 19 * 8 * 15 * 6);
    for (place, o) in out.chunks(19).enumerate() {
        let place = place as u32;
        let (x, y, z) = (place % 8, place / 8 % 15, place / 120);
        let index = x % 4 + 4 * (y % 5) + 20 * (z % 3);
        let want =
            [x % 4, y % 5, z % 3, x / 4, y / 5, z / 3, 4, 5, 3, 2, 3, 2, index, index % 32, index / 32, 2, 32, 15, 1];
        assert_eq!(o, want, "thread {x} {y} {z}");
    }
}
