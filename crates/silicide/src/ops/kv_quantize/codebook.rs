//! The Lloyd-Max quantiser of the standard normal distribution.

/// Least-squares levels for N(0, 1), `2^bits` of them, rising: each the mean of what is nearest to it.
///
/// Newton's steps towards that condition, and Lloyd's, which always lead nearer, where Newton's do not: alone they
/// would take many thousands for 8 bits. Mathematics: Lloyd, "Least squares quantization in PCM", 1982; Max,
/// "Quantizing for minimum distortion", 1960.
pub(super) fn lloyd_max(bits: u32) -> Vec<f64> {
    // The levels are symmetric: those above zero are looked for.
    let mut levels = first_levels(1 << (bits - 1));
    let mut centroids = centroids(&levels);
    let mut error = distance(&levels, &centroids);
    for _ in 0..1000 {
        let moved: Vec<f64> = levels.iter().zip(newton_step(&levels)).map(|(c, s)| c - s).collect();
        let in_order = moved[0] > 0.0 && moved.windows(2).all(|pair| pair[0] < pair[1]);
        let means = if in_order { self::centroids(&moved) } else { Vec::new() };
        if in_order && distance(&moved, &means) < error {
            (levels, centroids) = (moved, means);
        } else if error < 1e-12 {
            // As near as f64 comes.
            break;
        } else {
            levels = centroids;
            centroids = self::centroids(&levels);
        }
        error = distance(&levels, &centroids);
    }
    levels.iter().rev().map(|c| -c).chain(levels.iter().copied()).collect()
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// The mean of what is nearest to each of the positive levels.
fn centroids(levels: &[f64]) -> Vec<f64> {
    let mean = |pair: &[f64]| {
        let (mass, moment) = moments(pair[0], pair[1]);
        moment / mass
    };
    edges(levels).windows(2).map(mean).collect()
}

/// What bounds the numbers that are nearest to each of the positive levels.
fn edges(levels: &[f64]) -> Vec<f64> {
    [0.0].into_iter().chain(midpoints(levels)).chain([f64::INFINITY]).collect()
}

/// The midpoints of neighbouring levels: those of a number are as many as midpoints are below it.
pub(super) fn midpoints(levels: &[f64]) -> impl Iterator<Item = f64> {
    levels.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0)
}

/// Parts of 0.01 that the numbers about 0 are cut into, with all below in the first and all above in the last; `kernel.metal` has
/// the same.
pub(super) const BINS: usize = 1024;

/// Of each bin how many midpoints all of its numbers are above, however its ends are rounded; they are above one more at most.
pub(super) fn starts(midpoints: &[f32]) -> Vec<u8> {
    let below = |bin: usize| {
        let edge = (bin as f32 - BINS as f32 / 2.0 - 0.01) / 100.0;
        if bin == 0 { 0 } else { midpoints.iter().filter(|&&m| m < edge).count() }
    };
    (0..BINS).map(|bin| below(bin) as u8).collect()
}

/// Parts that the numbers within [`RANGE`] of 0 are cut into for `many.cu`, which has the same: of 2.5 for each level one midpoint is in each at most.
pub(super) fn places_of(bits: u32) -> u32 {
    (5 << bits) / 2
}
const RANGE: f64 = 4.5;

/// For each part the number that gives the code of a number in it, as the first eight bits of a sum with the bits of a float from 1 to 2.
/// Of that float's fraction, which is in proportion to how far the number is from the least of all parts, the first `bits + 2` bits say the part.
pub(super) fn places(midpoints: &[f64]) -> Vec<u32> {
    let bits = (midpoints.len() + 1).ilog2();
    let (count, part) = (places_of(bits), 1 << (21 - bits));
    let fraction = |m: f64| (m / RANGE + 1.0) / 2.0 * ((count - 1) * part) as f64;
    // The first fraction that is above each.
    let above: Vec<u32> = midpoints.iter().map(|&m| fraction(m).floor() as u32 + 1).collect();
    (0..count)
        .map(|i| {
            let code = above.iter().filter(|&&a| a <= i * part).count() as u32;
            let next = above.get(code as usize).copied().filter(|&a| a < (i + 1) * part).unwrap_or(1 << 23);
            ((code + 1) << 24).wrapping_sub(next).wrapping_sub(1f32.to_bits())
        })
        .collect()
}

/// Panter and Dite's density of many levels, the cube root of the distribution's: a normal one of variance 3.
fn first_levels(count: usize) -> Vec<f64> {
    let sigma = 3f64.sqrt();
    // Sums of the density in small steps stand for its quantiles.
    const STEP: f64 = 1e-3;
    let mut levels = Vec::with_capacity(count);
    let (mut x, mut below) = (0.0, 0.0);
    while levels.len() < count {
        let wanted = (levels.len() as f64 + 0.5) / count as f64;
        while below < wanted && x < 10.0 {
            below += 2.0 * STEP * density((x + STEP / 2.0) / sigma) / sigma;
            x += STEP;
        }
        levels.push(x);
    }
    levels
}

fn density(x: f64) -> f64 {
    (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt()
}

/// Mass and first moment of the distribution from `a` to `b`, which may be infinite.
fn moments(a: f64, b: f64) -> (f64, f64) {
    // What is past 12 more is nothing in f64.
    let b = b.min(a + 12.0);
    let panels = ((b - a) / 0.25).ceil().max(1.0);
    let width = (b - a) / panels;
    // Gauss and Legendre's nodes and weights.
    const NODES: [(f64, f64); 5] = [
        (-0.906_179_845_938_664, 0.236_926_885_056_189_08),
        (-0.538_469_310_105_683_1, 0.478_628_670_499_366_47),
        (0.0, 0.568_888_888_888_888_9),
        (0.538_469_310_105_683_1, 0.478_628_670_499_366_47),
        (0.906_179_845_938_664, 0.236_926_885_056_189_08),
    ];
    let (mut mass, mut moment) = (0.0, 0.0);
    for panel in 0..panels as usize {
        let middle = a + (panel as f64 + 0.5) * width;
        for (node, weight) in NODES {
            let x = middle + node * width / 2.0;
            let part = weight * width / 2.0 * density(x);
            mass += part;
            moment += part * x;
        }
    }
    (mass, moment)
}

/// What to take from the positive levels: the derivatives of the distortion by each level, over their own, which are a
/// matrix of three diagonals.
fn newton_step(levels: &[f64]) -> Vec<f64> {
    let n = levels.len();
    let edges = edges(levels);
    let (mut diagonal, mut upper, mut rest) = (vec![0.0; n], vec![0.0; n], vec![0.0; n]);
    for i in 0..n {
        let (c, a, b) = (levels[i], edges[i], edges[i + 1]);
        let (mass, moment) = moments(a, b);
        rest[i] = c * mass - moment;
        // An inner edge moves by half of what a level beside it does.
        let from_below = if i > 0 { (c - a) * density(a) / 2.0 } else { 0.0 };
        let from_above = if i + 1 < n { (b - c) * density(b) / 2.0 } else { 0.0 };
        diagonal[i] = mass - from_below - from_above;
        upper[i] = -from_above;
    }
    // Elimination from the first row down, then back. The matrix is symmetric.
    for i in 1..n {
        let factor = upper[i - 1] / diagonal[i - 1];
        diagonal[i] -= factor * upper[i - 1];
        rest[i] -= factor * rest[i - 1];
    }
    for i in (0..n).rev() {
        let after = if i + 1 < n { upper[i] * rest[i + 1] } else { 0.0 };
        rest[i] = (rest[i] - after) / diagonal[i];
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Golden;

    /// The mean squared error of a standard normal number rounded to its nearest level, by the trapezoid rule.
    fn distortion(levels: &[f64]) -> f64 {
        const STEP: f64 = 1e-4;
        let mut code = 0;
        let steps = (20.0 / STEP) as usize;
        let sum: f64 = (0..=steps)
            .map(|i| {
                let x = -10.0 + i as f64 * STEP;
                while code + 1 < levels.len() && (levels[code + 1] - x).abs() < (levels[code] - x).abs() {
                    code += 1;
                }
                density(x) * (levels[code] - x).powi(2)
            })
            .sum();
        sum * STEP
    }

    /// Max's paper has 1, 2 and 4 bits; the others are of `oracle/hadamard.py`, to their last digit.
    #[test]
    fn distortion_is_the_least_there_is() {
        let known = [(1, 0.3634), (2, 0.1175), (4, 9.501e-3), (5, 2.505e-3), (6, 6.442e-4), (8, 4.119e-5)];
        for (bits, want) in known {
            let got = distortion(&lloyd_max(bits));
            assert!((got - want).abs() < 3e-4 * want, "{bits} bits: {got}, wanted {want}");
        }
    }

    #[test]
    fn a_bin_has_one_midpoint_at_most() {
        for bits in [4, 5, 6, 8] {
            let midpoints: Vec<f32> = midpoints(&lloyd_max(bits)).map(|m| m as f32).collect();
            let starts = starts(&midpoints);
            let edge = |bin: usize, slack: f32| (bin as f32 - 512.0 + slack) / 100.0;
            for (bin, &start) in starts.iter().enumerate() {
                let least = if bin == 0 { f32::NEG_INFINITY } else { edge(bin, -0.005) };
                let most = if bin == BINS - 1 { f32::INFINITY } else { edge(bin + 1, 0.005) };
                let below = |x: f32| midpoints.iter().filter(|&&m| m < x).count();
                let start = start as usize;
                assert!(start <= below(least) && below(most) <= start + 1, "{bits} bits, bin {bin}");
            }
        }
    }

    #[test]
    fn places_give_codes() {
        for bits in [4, 5, 6, 8] {
            let midpoints: Vec<f64> = midpoints(&lloyd_max(bits)).collect();
            let places = places(&midpoints);
            for step in 0..=1_000_000 {
                let x = 10.0 * (step as f64 / 500_000.0 - 1.0);
                let part = ((x / RANGE + 1.0) / 2.0).clamp(0.0, 1.0) * (places.len() - 1) as f64;
                let float = (1.0 + part / (4 << bits) as f64) as f32;
                let place = places[((float.to_bits() >> (21 - bits)) % (4 << bits)) as usize];
                let code = float.to_bits().wrapping_add(place) >> 24;
                let nearest = |slack: f64| midpoints.iter().filter(|&&m| m < x + slack).count() as u32;
                assert!((nearest(-3e-6)..=nearest(3e-6)).contains(&code), "{bits} bits: {x} has code {code}");
            }
        }
    }

    #[test]
    fn every_level_is_the_mean_of_what_is_nearest() {
        for bits in 1..=8 {
            let levels = lloyd_max(bits);
            assert_eq!(levels.len(), 1 << bits);
            assert!(levels.is_sorted() && levels.iter().zip(levels.iter().rev()).all(|(a, b)| *a == -b));
            let edges: Vec<f64> = midpoints(&levels).chain([f64::INFINITY]).collect();
            let half = levels.len() / 2;
            for i in half..levels.len() {
                let (mass, moment) = moments(edges[i - 1], edges[i]);
                assert!((moment / mass - levels[i]).abs() < 1e-11, "{bits} bits, level {i}: {}", levels[i]);
            }
        }
    }

    #[test]
    fn gives_the_levels_that_lloyds_own_steps_converge_to() {
        let golden = Golden::read("kv_quantize");
        for bits in [4, 5, 6, 8] {
            let want = golden.exact_values(&format!("bits_{bits}.levels"));
            let got = lloyd_max(bits);
            assert_eq!(got.len(), want.len());
            let worst = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(worst < 1e-8, "{bits} bits: {worst}");
        }
    }
}
