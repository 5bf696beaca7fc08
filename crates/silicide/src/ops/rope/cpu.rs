//! One task a run of tokens. Cosine and sine are made once a token and serve all its heads.

use std::f32::consts::TAU;

use super::RotaryParams;
use crate::device::cpu::Call;
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::vector::{narrow, vectorized, widen};
use crate::{DType, Float};

pub(in crate::ops) fn run<T: Float>(call: &Call) {
    let p: RotaryParams = call.params();
    let (pairs, dim, tokens) = (p.pairs as usize, p.head_dim as usize, p.tokens as usize);
    let parts = [(call.view::<T>(0), call.view::<T>(1)), (call.view::<T>(2), call.view::<T>(3))];
    let (positions, frequencies, axes) = (call.slice::<u32>(4), call.slice::<i64>(5), call.slice::<u32>(6));
    // Tasks must be worth the hand-over.
    let grain = 8192usize.div_ceil((p.heads[0] + p.heads[1]) as usize * dim);
    call.pool.parallel_ranges(tokens, grain, &|range| {
        // Only elements that turn are touched where the others stay, if those come first.
        let touched = if p.copies == 0 && p.rest as usize == 2 * pairs { 2 * pairs } else { dim };
        with_scratch(2 * (pairs + touched), |scratch| {
            let (cos, rest) = scratch.split_at_mut(pairs);
            let (sin, rest) = rest.split_at_mut(pairs);
            let (row, turned) = rest.split_at_mut(touched);
            vectorized(
                #[inline(always)]
                || {
                    for token in range {
                        angles(&p, positions, frequencies, axes, token, cos, sin);
                        for (i, (x, out)) in parts.iter().enumerate() {
                            for head in 0..p.heads[i] as usize {
                                let start = |s: &[u32]| token * s[2 * i] as usize + head * s[2 * i + 1] as usize;
                                // SAFETY: a task reads a head before it writes the same head, and touches only heads
                                // of its own tokens, which outputs do not share; the input's slice ends here.
                                widen(unsafe { x.row(start(&p.x_strides), touched) }, row);
                                // SAFETY: as above.
                                let out = unsafe { out.row_mut(start(&p.out_strides), touched) };
                                rotate(&p, row, cos, sin, turned, out);
                            }
                        }
                    }
                },
            );
        });
    });
}

/// The cosine and the sine by which each pair of a token turns, scaled.
#[inline(always)]
pub(in crate::ops) fn angles(
    p: &RotaryParams,
    positions: &[u32],
    frequencies: &[i64],
    axes: &[u32],
    token: usize,
    cos: &mut [f32],
    sin: &mut [f32],
) {
    let mut at = [0i64; 4];
    for (axis, at) in at.iter_mut().enumerate().take(p.axes as usize) {
        let position = positions[axis * p.tokens as usize + token];
        *at = if p.signed_positions == 0 { position as i64 } else { position as i32 as i64 };
    }
    for (((c, s), &f), &axis) in cos.iter_mut().zip(sin.iter_mut()).zip(frequencies).zip(axes) {
        (*c, *s) = cos_sin(at[axis as usize & 3].wrapping_mul(f));
        (*c, *s) = (*c * p.scale, *s * p.scale);
    }
}

/// Turns a head; elements that do not turn are copied where they must be. `turned` is room for a head.
#[inline(always)]
pub(in crate::ops) fn rotate<T: Float>(
    p: &RotaryParams,
    x: &[f32],
    cos: &[f32],
    sin: &[f32],
    turned: &mut [f32],
    out: &mut [T],
) {
    if T::DTYPE != DType::F16 {
        return turn(p, x, cos, sin, out);
    }
    // Slices alone are converted by vectors. What does not turn is rounded to what it was.
    turned.copy_from_slice(x);
    turn(p, x, cos, sin, turned);
    narrow(turned, out);
}

#[inline(always)]
fn turn<T: Float>(p: &RotaryParams, x: &[f32], cos: &[f32], sin: &[f32], out: &mut [T]) {
    if p.step == 2 {
        for (((out, x), &c), &s) in out.chunks_exact_mut(2).zip(x.chunks_exact(2)).zip(cos).zip(sin) {
            out[0] = T::from_f32(x[0] * c - x[1] * s);
            out[1] = T::from_f32(x[1] * c + x[0] * s);
        }
    } else {
        let section = p.section.max(1) as usize;
        for (i, (cos, sin)) in cos.chunks(section).zip(sin.chunks(section)).enumerate() {
            let start = 2 * i * section;
            let (first, second) = out[start..].split_at_mut(p.distance as usize);
            let (a, b) = x[start..].split_at(p.distance as usize);
            let (a, b) = (&a[..cos.len()], &b[..cos.len()]);
            for ((((first, second), (a, b)), c), s) in
                first.iter_mut().zip(second).zip(a.iter().zip(b)).zip(cos).zip(sin)
            {
                *first = T::from_f32(a * c - b * s);
                *second = T::from_f32(b * c + a * s);
            }
        }
    }
    if p.copies != 0 {
        let (half, pairs, rest) = (p.head_dim as usize / 2, p.pairs as usize, p.rest as usize);
        let (first, second) = (rest..rest + half - pairs, half + pairs..2 * half);
        narrow(&x[first.clone()], &mut out[first]);
        narrow(&x[second.clone()], &mut out[second]);
    }
}

/// Cosine and sine of a phase in 2^-64 turns, by the arithmetic of `rope.h`, to within a unit in the last place.
#[inline(always)]
fn cos_sin(phase: i64) -> (f32, f32) {
    const TURN: f32 = 3217.0 / 512.0;
    const TURN_REST: f32 = (std::f64::consts::TAU - 3217.0 / 512.0) as f32;
    let quadrant = (phase as u64).wrapping_add(1 << 61) >> 62;
    let rest = phase.wrapping_sub((quadrant << 62) as i64);
    let high = (rest + (1 << 49)) >> 50;
    let low = (rest - (high << 50)) as f32;
    let high = high as f32 / 16384.0;

    let exact = high * TURN;
    let more = high * TURN_REST + low * (TAU / (1u128 << 64) as f32);
    let angle = exact + more;
    let error = more - (angle - exact);

    let x = angle * angle;
    let s = angle * x * (-1.0 / 6.0 + x * (1.0 / 120.0 + x * (-1.0 / 5040.0 + x * (1.0 / 362_880.0))));
    let s = angle + (s + error * (1.0 - 0.5 * x));
    let near = 1.0 - 0.5 * x;
    let c = x * x * (1.0 / 24.0 + x * (-1.0 / 720.0 + x * (1.0 / 40_320.0 + x * (-1.0 / 3_628_800.0))));
    let c = near + ((1.0 - near - 0.5 * x) + (c - angle * error));

    let (c, s) = if quadrant & 1 != 0 { (-s, c) } else { (c, s) };
    if quadrant & 2 != 0 { (-c, -s) } else { (c, s) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosine_and_sine_are_within_a_unit_in_the_last_place() {
        let mut worst = 0.0f64;
        for i in 0..1_000_000i64 {
            let phase = i.wrapping_mul(0x9e37_79b9_7f4a_7c15u64 as i64);
            let (c, s) = cos_sin(phase);
            let (sin, cos) = (phase as f64 / 2f64.powi(64) * std::f64::consts::TAU).sin_cos();
            worst = worst.max((c as f64 - cos).abs()).max((s as f64 - sin).abs());
        }
        assert!(worst < 5e-8, "{worst}");
        let quarter = 1i64 << 62;
        assert_eq!(cos_sin(0), (1.0, 0.0));
        assert_eq!(cos_sin(quarter), (0.0, 1.0));
        assert_eq!(cos_sin(-quarter), (0.0, -1.0));
        assert_eq!(cos_sin(i64::MIN), (-1.0, 0.0));
        let tiny = cos_sin(12345).1 as f64;
        assert!((tiny / (12345.0 / 2f64.powi(64) * std::f64::consts::TAU) - 1.0).abs() < 2e-7, "kept small angles");
    }
}
