//! Arithmetic on rows of `f32`, vectorised by the compiler at the width that the processor has.

use std::cell::RefCell;

use crate::Float;

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
fn reduce(x: &[f32], identity: f32, map: impl Fn(f32) -> f32, combine: impl Fn(f32, f32) -> f32) -> f32 {
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
    reduce(x, 0.0, |x| x, |a, b| a + b)
}

/// The sum of squares.
#[inline(always)]
pub(crate) fn sum_squares(x: &[f32]) -> f32 {
    reduce(x, 0.0, |x| x * x, |a, b| a + b)
}

/// The greatest element, NaN where there is one; negative infinity for none.
#[inline(always)]
pub(crate) fn max(x: &[f32]) -> f32 {
    let max = reduce(x, f32::NEG_INFINITY, |x| x, |a, b| if a > b { a } else { b });
    // The comparison above may drop a NaN; a sum keeps it.
    if sum(x).is_nan() && x.iter().any(|x| x.is_nan()) { f32::NAN } else { max }
}

/// The inner product.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let mut lanes = [0.0f32; LANES];
    let (mut ca, mut cb) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    for (x, y) in (&mut ca).zip(&mut cb) {
        for i in 0..LANES {
            lanes[i] += x[i] * y[i];
        }
    }
    for ((lane, &x), &y) in lanes.iter_mut().zip(ca.remainder()).zip(cb.remainder()) {
        *lane += x * y;
    }
    sum(&lanes)
}

/// `e^x` to about two units in the last place, without a branch: 0 below -87.3 or so, infinity above 88.7, NaN for NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // e^x = 2^n * e^r with r in [-ln2/2, ln2/2], and e^r by its Taylor series to r^7.
    let clamped = if x < -104.0 { -104.0 } else { x };
    let clamped = if clamped > 89.0 { 89.0 } else { clamped };
    let n = (clamped * std::f32::consts::LOG2_E + 12_582_912.0) - 12_582_912.0;
    // ln 2 in two parts, so that n * ln 2 is taken off exactly.
    let r = clamped - n * 0.693_359_4;
    let r = r - n * -2.121_944_4e-4;
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + c;
    }
    // 2^n in two steps, since n may reach past the exponents of normal numbers.
    let n = n as i32;
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

/// Widens a row.
#[inline(always)]
pub(crate) fn widen<T: Float>(x: &[T], out: &mut [f32]) {
    for (o, x) in out.iter_mut().zip(x) {
        *o = x.to_f32();
    }
}

/// Rounds a row.
#[inline(always)]
pub(crate) fn narrow<T: Float>(x: &[f32], out: &mut [T]) {
    for (o, &x) in out.iter_mut().zip(x) {
        *o = T::from_f32(x);
    }
}

/// Calls `f` with `len` floats of this thread's scratch memory, with whatever they held. Allocates only when a thread
/// first needs so many. Calls may nest.
pub(crate) fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    thread_local! {
        static SCRATCH: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
    }
    let mut block = SCRATCH.with_borrow_mut(Vec::pop).unwrap_or_default();
    if block.len() < len {
        block.resize(len, 0.0);
    }
    let result = f(&mut block[..len]);
    SCRATCH.with_borrow_mut(|s| s.push(block));
    result
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
    fn reductions_take_any_length() {
        for n in [0, 1, 15, 16, 17, 33, 100] {
            let x: Vec<f32> = (0..n).map(|i| i as f32 - 7.0).collect();
            assert_eq!(sum(&x), x.iter().sum::<f32>());
            assert_eq!(dot(&x, &x), x.iter().map(|x| x * x).sum::<f32>());
            assert_eq!(sum_squares(&x), dot(&x, &x));
            assert_eq!(max(&x), x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
        assert!(max(&[1.0, f32::NAN, 2.0]).is_nan());
        assert_eq!(max(&[f32::NEG_INFINITY; 3]), f32::NEG_INFINITY);
        assert_eq!(max(&[f32::INFINITY, f32::NEG_INFINITY]), f32::INFINITY);
    }
}
