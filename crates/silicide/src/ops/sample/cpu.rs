//! The same integers as the kernel's; the cut is found by counting keys in bins of their digits.

use super::Params;
use crate::device::cpu::Call;
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::vector::{max_order_key, order_key, vectorized};
use crate::ops::top_k;
use crate::ops::walk::BLOCK;

/// The keys of the infinities: no greatest key may be one of these, nor beyond.
const POSITIVE_INFINITY: u32 = 0xff80_0000;
const NEGATIVE_INFINITY: u32 = 0x007f_ffff;

pub(super) fn run(call: &Call) {
    let p: Params = call.params();
    let (logits, state, out) = (call.view::<f32>(0), call.view::<u32>(1), call.view::<u32>(2));
    let (len, stride) = (p.walk.row_len(), p.walk.stride(0));
    p.walk.for_each_row(call.pool, |row, at| {
        // SAFETY: one task a row.
        let state = unsafe { state.row_mut(4 * row, 4) };
        let random = random(state);
        let token = match stride {
            // SAFETY: nothing writes the logits.
            1 => draw(&p, unsafe { logits.row(at[0], len) }, random),
            _ => with_scratch(len, |s| {
                // SAFETY: as above.
                s.iter_mut().enumerate().for_each(|(i, s)| *s = unsafe { logits.get(at[0] + i * stride) });
                draw(&p, s, random)
            }),
        };
        // SAFETY: one task a row.
        unsafe { out.set(row, token) };
    });
}

/// The number of a row's step; the state is moved on by one.
fn random(state: &mut [u32]) -> u64 {
    let [a, b, ..] = philox([state[2], state[3], 0, 0], [state[0], state[1]]);
    let next = (state[2] as u64 | (state[3] as u64) << 32).wrapping_add(1);
    (state[2], state[3]) = (next as u32, (next >> 32) as u32);
    (a as u64) << 32 | b as u64
}

/// Philox4x32-10: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011.
pub(super) fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = counter[0] as u64 * 0xd251_1f53;
        let b = counter[2] as u64 * 0xcd9e_8d57;
        counter = [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
    }
    counter
}

/// `2^40 * 2^-(below * scale)`, rounded down, in integers but for one product: the same on every device.
#[inline(always)]
pub(super) fn weight(below: f32, scale: f32) -> u64 {
    // ln(2)^k / k! for k from 10 down to 1, in units of 2^-32: the series of 2^-x.
    const SERIES: [u64; 10] =
        [0x1e, 0x1b5, 0x162c, 0xffe6, 0xa1849, 0x57_6200, 0x276_556e, 0xe35_846c, 0x3d7f_7bff, 0xb172_17f8];
    // Masks say that this is the product of halves that vectors have.
    const LOW: u64 = 0xffff_ffff;
    let exponent = below * scale;
    let exponent = if exponent < 63.0 { exponent } else { 63.0 };
    // SAFETY: within 0 and 2^30, as `below` and `scale` are not negative; NaN is 63.
    let fixed = unsafe { (exponent * (1 << 24) as f32).to_int_unchecked::<i32>() } as u32;
    let (shift, x) = ((fixed >> 24) as u64, (fixed << 8) as u64);
    let mut t = 0;
    for c in SERIES {
        t = c - (((x & LOW) * (t & LOW)) >> 32);
    }
    let fraction = (1u64 << 32) - (((x & LOW) * (t & LOW)) >> 32);
    (fraction << 8) >> shift
}

/// What may be drawn: keys above `key`, and at it up to the index `last`; and no logit further below the greatest than
/// `distance`.
#[derive(Clone, Copy)]
struct Cut {
    most: f32,
    distance: f32,
    key: u32,
    last: u32,
}

impl Cut {
    #[inline(always)]
    fn keeps(&self, i: usize, logit: f32) -> bool {
        let key = order_key(logit);
        // Both sides are computed, so that the compiler may do many elements at once.
        let ranked = (key > self.key) | ((key == self.key) & (i as u32 <= self.last));
        ranked & (self.most - logit <= self.distance)
    }
}

fn draw(p: &Params, logits: &[f32], random: u64) -> u32 {
    let top = vectorized(
        #[inline(always)]
        || max_order_key(logits),
    );
    if top >= POSITIVE_INFINITY || top <= NEGATIVE_INFINITY {
        return u32::MAX;
    }
    if p.top_k == 1 {
        return logits.iter().position(|&l| order_key(l) == top).expect("the key is of one of these") as u32;
    }
    let most = f32::from_bits(if top >> 31 == 1 { top & 0x7fff_ffff } else { !top });
    if p.has_top_p == 0 && p.has_top_k == 0 {
        return draw_from_all(p, logits, most, random);
    }
    let limit = if p.has_top_p != 0 { share(total(logits, most), p.top_p) } else { u64::MAX };
    with_scratch(logits.len(), |indices: &mut [u32]| {
        with_scratch(logits.len(), |near: &mut [f32]| {
            let k = p.top_k as usize;
            let count = match k < logits.len() / 8 {
                true => first(logits, k, indices, near),
                false => gather(p, logits, most, limit, indices, near),
            };
            let (indices, near) = (&indices[..count], &mut near[..count]);
            let (key, last) = search(p, near, most, limit);
            let cut = Cut { most, distance: p.distance, key, last };
            with_scratch(count, |weights: &mut [u64]| {
                let total = vectorized(
                    #[inline(always)]
                    || {
                        let mut total = 0;
                        for (i, (w, &logit)) in weights.iter_mut().zip(&*near).enumerate() {
                            *w = if cut.keeps(i, logit) { weight(most - logit, p.scale) } else { 0 };
                            total += *w;
                        }
                        total
                    },
                );
                indices[pick(weights, left_of(total, random)).0]
            })
        })
    })
}

/// Draws where there is no cut: the sums of blocks, and the weights of one.
fn draw_from_all(p: &Params, logits: &[f32], most: f32, random: u64) -> u32 {
    with_scratch(logits.len().div_ceil(BLOCK), |sums: &mut [u64]| {
        for (sum, block) in sums.iter_mut().zip(logits.chunks(BLOCK)) {
            *sum = vectorized(
                #[inline(always)]
                || block.iter().map(|&l| drawable(p, l, most)).sum(),
            );
        }
        let (block, mut left) = pick(sums, left_of(sums.iter().sum(), random));
        for (i, &logit) in logits.iter().enumerate().skip(block * BLOCK) {
            let weight = drawable(p, logit, most);
            if left < weight {
                return i as u32;
            }
            left -= weight;
        }
        unreachable!("what is left is below the block's sum")
    })
}

#[inline(always)]
fn drawable(p: &Params, logit: f32, most: f32) -> u64 {
    if most - logit <= p.distance { weight(most - logit, p.scale) } else { 0 }
}

/// A random share of the total.
fn left_of(total: u64, random: u64) -> u64 {
    ((total as u128 * random as u128) >> 64) as u64
}

/// Where `left` lies among weights laid end to end, and what is left of it there.
fn pick(weights: &[u64], mut left: u64) -> (usize, u64) {
    for (i, &w) in weights.iter().enumerate() {
        if left < w {
            return (i, left);
        }
        left -= w;
    }
    unreachable!("what is left is below the total")
}

/// The weight of all at temperature 1.
fn total(logits: &[f32], most: f32) -> u64 {
    vectorized(
        #[inline(always)]
        || logits.iter().map(|&l| weight(most - l, std::f32::consts::LOG2_E)).sum(),
    )
}

/// The greatest `k` elements, in order of their indices. How many they are.
fn first(logits: &[f32], k: usize, indices: &mut [u32], near: &mut [f32]) -> usize {
    with_scratch(top_k::room(logits.len(), k), |kept: &mut [u64]| {
        let best = top_k::best_of(logits, k, kept);
        for (index, &candidate) in indices.iter_mut().zip(best) {
            *index = !(candidate as u32);
        }
    });
    indices[..k].sort_unstable();
    for (near, &index) in near.iter_mut().zip(&indices[..k]) {
        *near = logits[index as usize];
    }
    k
}

/// The elements near the greatest, in order, from a distance that grows until the cut must be among them: few of a trained
/// model's logits have to be looked at closely. How many they are.
fn gather(p: &Params, logits: &[f32], most: f32, limit: u64, indices: &mut [u32], near: &mut [f32]) -> usize {
    const NEAR: usize = 64;
    let mut distance = 4.0;
    loop {
        let mut count = 0;
        for (block, logits) in logits.chunks(NEAR).enumerate() {
            let any = vectorized(
                #[inline(always)]
                || logits.iter().fold(false, |any, &l| any | (most - l <= distance)),
            );
            if !any {
                continue;
            }
            for (i, &logit) in logits.iter().enumerate() {
                // Written in any case, counted where it is near: no branch to foresee.
                (indices[count], near[count]) = ((block * NEAR + i) as u32, logit);
                count += usize::from(most - logit <= distance);
            }
        }
        let reached = count >= p.top_k as usize || p.has_top_p != 0 && total(&near[..count], most) >= limit;
        if reached || distance == f32::INFINITY {
            return count;
        }
        distance = if distance < 100.0 { 2.0 * distance } else { f32::INFINITY };
    }
}

/// The least key that top-p and top-k keep, and the place of the last at that key that top-k keeps.
fn search(p: &Params, logits: &[f32], most: f32, limit: u64) -> (u32, u32) {
    const DIGITS: [(u32, u32); 3] = [(21, 11), (10, 11), (0, 10)];
    const BINS: usize = 1 << 11;
    // Of what lies above the bin in hand.
    let (mut mass, mut count) = (0u64, 0u32);
    let mut key = 0u32;
    with_scratch(2 * BINS, |bins: &mut [u64]| {
        for (shift, bits) in DIGITS {
            let (masses, counts) = bins.split_at_mut(BINS);
            masses.fill(0);
            counts.fill(0);
            let prefix = (key as u64) >> (shift + bits);
            for &logit in logits {
                let k = order_key(logit);
                if (k as u64) >> (shift + bits) == prefix {
                    let bin = (k >> shift) as usize & (BINS - 1) & ((1 << bits) - 1);
                    counts[bin] += 1;
                    if p.has_top_p != 0 {
                        masses[bin] += weight(most - logit, std::f32::consts::LOG2_E);
                    }
                }
            }
            // The lowest bin that has elements and too little above it.
            let (mut m, mut c) = (mass, count);
            for bin in (0..1usize << bits).rev() {
                if counts[bin] == 0 {
                    continue;
                }
                if m >= limit || c >= p.top_k {
                    break;
                }
                key = (prefix << (shift + bits)) as u32 | (bin as u32) << shift;
                (mass, count) = (m, c);
                m += masses[bin];
                c += counts[bin] as u32;
            }
        }
    });
    let ties = logits.iter().enumerate().filter(|(_, l)| order_key(**l) == key);
    let last = ties.map(|(i, _)| i as u32).nth((p.top_k - count) as usize - 1).unwrap_or(u32::MAX);
    (key, last)
}

/// `total * share / 2^32`, at least 1 so that the greatest always stays.
fn share(total: u64, share: u32) -> u64 {
    (((total >> 32) * share as u64) + (((total & 0xffff_ffff) * share as u64) >> 32)).max(1)
}
