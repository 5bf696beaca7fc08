//! Arithmetic on rows of `f32`, vectorised by the compiler at the width that the processor has.

use bytemuck::{cast_slice, cast_slice_mut};
use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::{DType, Float};

/// Lanes that reductions keep apart: fixed, so that a sum is the same on every processor.
const LANES: usize = 16;

/// Runs `f` compiled for the widest vectors here. `f` must be a closure marked `#[inline(always)]`, or small enough that
/// the compiler puts it in line; otherwise it runs as it was compiled.
#[inline(always)]
pub(crate) fn vectorized<R>(f: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
        fn avx512<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        #[target_feature(enable = "avx2,fma,f16c")]
        fn avx2<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
        {
            // SAFETY: the processor has the features.
            return unsafe { avx512(f) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
            // SAFETY: the processor has the features.
            return unsafe { avx2(f) };
        }
    }
    f()
}

#[inline(always)]
fn reduce<const LANES: usize>(
    x: &[f32],
    identity: f32,
    map: impl Fn(f32) -> f32,
    combine: impl Fn(f32, f32) -> f32,
) -> f32 {
    let mut lanes = [identity; LANES];
    let mut chunks = x.chunks_exact(LANES);
    for chunk in &mut chunks {
        for i in 0..LANES {
            lanes[i] = combine(lanes[i], map(chunk[i]));
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane = combine(*lane, map(x));
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = combine(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// The sum.
#[inline(always)]
pub(crate) fn sum(x: &[f32]) -> f32 {
    reduce::<LANES>(x, 0.0, |x| x, |a, b| a + b)
}

/// The sum of squares.
#[inline(always)]
pub(crate) fn sum_squares(x: &[f32]) -> f32 {
    reduce::<LANES>(x, 0.0, |x| x * x, |a, b| a + b)
}

/// The greatest element, NaN where there is one; negative infinity for none.
#[inline(always)]
pub(crate) fn max(x: &[f32]) -> f32 {
    greatest(x, |x| x)
}

/// The least element, NaN where there is one; infinity for none.
#[inline(always)]
pub(crate) fn min(x: &[f32]) -> f32 {
    -greatest(x, |x| -x)
}

#[inline(always)]
fn greatest(x: &[f32], map: impl Fn(f32) -> f32) -> f32 {
    // A choice takes long, so two vectors' are under way. Where the first is NaN it is the choice, where the second is the
    // comparison is false.
    reduce::<{ 2 * LANES }>(x, f32::NEG_INFINITY, map, |a, b| if a > b || a.is_nan() { a } else { b })
}

/// `e^x` to about two units in the last place, without a branch: 0 below -87.3 or so, infinity above 88.7, NaN for NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // e^x = 2^n * e^r with r in [-ln2/2, ln2/2], and e^r by its Taylor series to r^7.
    let clamped = if x < -104.0 { -104.0 } else { x };
    let clamped = if clamped > 89.0 { 89.0 } else { clamped };
    // Adding 3 * 2^22 leaves n in the lowest bits, so that no conversion is needed, which would keep this from vectors.
    const SHIFT: f32 = 12_582_912.0;
    let shifted = clamped * std::f32::consts::LOG2_E + SHIFT;
    let n = shifted - SHIFT;
    // ln 2 in two parts, so that n * ln 2 is taken off exactly.
    let r = clamped - n * 0.693_359_4;
    let r = r - n * -2.121_944_4e-4;
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + c;
    }
    // 2^n in two steps, since n may reach past the exponents of normal numbers.
    let n = (shifted.to_bits() as i32).wrapping_sub(SHIFT.to_bits() as i32);
    let half = n >> 1;
    let scale = |e: i32| f32::from_bits(((e + 127) as u32) << 23);
    p * scale(half) * scale(n - half)
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `tanh x`, from its exponential; exact in sign and limits.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    // Near zero the quotient cancels; the odd series is exact enough there.
    let e = exp(-2.0 * x.abs());
    let far = ((1.0 - e) / (1.0 + e)).copysign(x);
    let x2 = x * x;
    let near = x * (1.0 + x2 * (-1.0 / 3.0 + x2 * (2.0 / 15.0 + x2 * (-17.0 / 315.0))));
    if x.abs() < 0.15 { near } else { far }
}

/// `x * sigmoid(x)`.
#[inline(always)]
pub(crate) fn silu(x: f32) -> f32 {
    x * sigmoid(x)
}

/// `x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2`.
#[inline(always)]
pub(crate) fn gelu_tanh(x: f32) -> f32 {
    // (1 + tanh u) / 2 is sigmoid(2u), which keeps its relative accuracy where the result is small.
    x * sigmoid(1.595_769 * (x + 0.044_715 * x * x * x))
}

/// `x * (1 + erf(x / sqrt 2)) / 2`.
#[inline(always)]
pub(crate) fn gelu_erf(x: f32) -> f32 {
    // By the complementary error function, for the same reason: erfc(z) = e^(-z^2) * t * q(t) with t = 1 / (1 + z / 2)
    // for z >= 0, and q fitted at Chebyshev nodes to 2e-7 relative.
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.5 * z);
    let mut q = 0.045_351_34;
    for c in [
        -0.245_580_03,
        0.516_899_5,
        -0.482_474_77,
        0.151_885_17,
        -0.067_958_27,
        0.095_827_1,
        0.174_948_6,
        0.246_913_57,
        0.282_092_87,
        0.282_094_8,
    ] {
        q = q * t + c;
    }
    let tail = 0.5 * exp(-z * z) * (t * q);
    x * if x < 0.0 { tail } else { 1.0 - tail }
}

/// The natural logarithm to about two units in the last place; negative infinity for 0, NaN below.
#[inline(always)]
pub(crate) fn log(x: f32) -> f32 {
    // x = m * 2^n with m in [sqrt 1/2, sqrt 2), and log m = 2 atanh(s) with s = (m - 1) / (m + 1), |s| < 0.172.
    let small = x < f32::MIN_POSITIVE;
    let y = if small { x * (1 << 23) as f32 } else { x };
    let bits = y.to_bits() as i32;
    let above = bits - std::f32::consts::FRAC_1_SQRT_2.to_bits() as i32;
    let n = above >> 23;
    let m = f32::from_bits((bits - (n << 23)) as u32);
    let n = n as f32 - if small { 23.0 } else { 0.0 };
    let f = m - 1.0;
    let s = f / (m + 1.0);
    let s2 = s * s;
    let mut p = 2.0 / 11.0;
    for c in [2.0 / 9.0, 2.0 / 7.0, 0.4, 2.0 / 3.0] {
        p = p * s2 + c;
    }
    // 2s = f - s * f, whose rounding does not reach the leading term.
    let log_m = f - s * (f - s2 * p);
    let log = n * 0.693_359_4 + (n * -2.121_944_4e-4 + log_m);
    let log = if x == 0.0 { f32::NEG_INFINITY } else { log };
    let log = if x == f32::INFINITY { x } else { log };
    if x >= 0.0 { log } else { f32::NAN }
}

/// `log(1 + e^x)`, without loss for negative `x` and without overflow.
#[inline(always)]
pub(crate) fn softplus(x: f32) -> f32 {
    // log(1 + u): what rounding took from 1 + u is put back by the quotient.
    let u = exp(-x.abs());
    let w = 1.0 + u;
    let log_one_plus = if w == 1.0 { u } else { log(w) * (u / (w - 1.0)) };
    (if x < 0.0 { 0.0 } else { x }) + log_one_plus
}

/// Asks for the memory two pages after a row, which is read from front to back with its neighbours: processors fetch ahead only
/// as far as a page's end.
#[inline(always)]
pub(crate) fn ask_ahead<T>(x: &[T]) {
    const AHEAD: usize = 8 << 10;
    for line in (0..size_of_val(x)).step_by(64) {
        ask(x.as_ptr().cast::<u8>().wrapping_add(AHEAD + line));
    }
}

/// Asks for the cache line at an address, which need not be ours.
#[inline(always)]
pub(crate) fn ask(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint, that every processor of the architecture takes and that never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Widens a row.
#[inline(always)]
pub(crate) fn widen<T: Float>(x: &[T], out: &mut [f32]) {
    let n = x.len().min(out.len());
    match T::DTYPE {
        // By the slice: `half` asks for the processor's conversion at every call.
        DType::F16 => cast_slice::<T, f16>(&x[..n]).convert_to_f32_slice(&mut out[..n]),
        _ => out.iter_mut().zip(x).for_each(|(o, x)| *o = x.to_f32()),
    }
}

/// Rounds a row.
#[inline(always)]
pub(crate) fn narrow<T: Float>(x: &[f32], out: &mut [T]) {
    let n = x.len().min(out.len());
    match T::DTYPE {
        DType::F16 => cast_slice_mut::<T, f16>(&mut out[..n]).convert_from_f32_slice(&x[..n]),
        _ => out.iter_mut().zip(x).for_each(|(o, &x)| *o = T::from_f32(x)),
    }
}

/// A number that orders as `x` does among floats: -0 is 0, and NaN is above everything. Never 0.
#[inline(always)]
pub(crate) fn order_key(x: f32) -> u32 {
    let bits = x.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    // A negative number's bits are turned around, a positive one's put above them.
    let key = bits ^ (((bits as i32 >> 31) as u32) | 0x8000_0000);
    let key = if magnitude == 0 { 0x8000_0000 } else { key };
    if magnitude > 0x7f80_0000 { u32::MAX } else { key }
}

/// The greatest [`order_key`]; 0 for none.
#[inline(always)]
pub(crate) fn max_order_key(x: &[f32]) -> u32 {
    let mut lanes = [0u32; LANES];
    let mut chunks = x.chunks_exact(LANES);
    for chunk in &mut chunks {
        for i in 0..LANES {
            lanes[i] = lanes[i].max(order_key(chunk[i]));
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane = (*lane).max(order_key(x));
    }
    lanes.into_iter().fold(0, u32::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulps_everywhere() {
        let mut worst = 0.0f64;
        for i in -87_000..88_700 {
            let x = i as f32 / 1000.0;
            let want = (x as f64).exp();
            worst = worst.max(((exp(x) as f64 - want) / want).abs());
        }
        assert!(worst < 2.0 * f32::EPSILON as f64, "{worst}");
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(-100.0) > 0.0, "denormal results are kept");
    }

    #[test]
    fn tanh_and_sigmoid_follow_the_true_functions() {
        for i in -20_000..20_000 {
            let x = i as f32 / 1000.0;
            let t = (x as f64).tanh();
            assert!((tanh(x) as f64 - t).abs() <= 3e-7 * t.abs().max(1e-30), "tanh {x}: {} {t}", tanh(x));
            let s = 1.0 / (1.0 + (-x as f64).exp());
            assert!((sigmoid(x) as f64 - s).abs() <= 3e-7 * s, "sigmoid {x}");
        }
        assert_eq!(tanh(f32::INFINITY), 1.0);
        assert_eq!(tanh(f32::NEG_INFINITY), -1.0);
        assert!(tanh(f32::NAN).is_nan());
        assert_eq!(sigmoid(f32::NEG_INFINITY), 0.0);
    }

    #[test]
    fn log_softplus_and_gelu_follow_the_true_functions() {
        for i in 1..100_000u32 {
            let x = f32::from_bits(i.wrapping_mul(21_399));
            if x.is_finite() {
                let want = (x as f64).ln();
                assert!((log(x) as f64 - want).abs() <= 2e-7 * want.abs(), "log {x}: {} {want}", log(x));
            }
        }
        for i in -850_000..900_000 {
            let x = i as f32 / 10_000.0;
            let want = (x as f64).exp().ln_1p();
            assert!((softplus(x) as f64 - want).abs() <= 4e-7 * want, "softplus {x}: {} {want}", softplus(x));
        }
        assert_eq!(log(1.0), 0.0);
        assert_eq!(log(0.0), f32::NEG_INFINITY);
        assert_eq!(log(f32::INFINITY), f32::INFINITY);
        assert!(log(-1.0).is_nan() && log(f32::NAN).is_nan());
        assert!(softplus(f32::NAN).is_nan());
        // Normal quantiles: x * P(X < x).
        for (x, want) in [(-5.0, -1.433_257_8e-6), (-1.0, -0.158_655_25), (1e-3, 5.003_989e-4), (2.0, 1.954_499_8)] {
            assert!((gelu_erf(x) - want).abs() <= 1e-6 * want.abs(), "gelu {x}: {} {want}", gelu_erf(x));
        }
    }

    #[test]
    fn order_keys_order() {
        let rising = [f32::NEG_INFINITY, -2.0, -1e-40, 0.0, 1e-40, 1.0, f32::MAX, f32::INFINITY, f32::NAN];
        assert!(rising.windows(2).all(|w| order_key(w[0]) < order_key(w[1])));
        assert!(order_key(f32::NEG_INFINITY) > 0 && order_key(-0.0) == order_key(0.0));
        assert_eq!(order_key(-f32::NAN), order_key(f32::NAN));
        assert_eq!(max_order_key(&[]), 0);
    }

    #[test]
    fn reductions_take_any_length() {
        for n in [0, 1, 15, 16, 17, 33, 100] {
            let x: Vec<f32> = (0..n).map(|i| i as f32 - 7.0).collect();
            assert_eq!(sum(&x), x.iter().sum::<f32>());
            assert_eq!(sum_squares(&x), x.iter().map(|x| x * x).sum::<f32>());
            assert_eq!(max(&x), x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
        assert!(max(&[1.0, f32::NAN, 2.0]).is_nan());
        assert_eq!(max(&[f32::NEG_INFINITY; 3]), f32::NEG_INFINITY);
        assert_eq!(max(&[f32::INFINITY, f32::NEG_INFINITY]), f32::INFINITY);
    }
}
