//! Tokens are shared out. A candidate is one integer, its key above the complement of its place, so that the greatest is
//! the best and of equals the first.

use super::{GroupScore, Params, RouterScore};
use crate::Float;
use crate::device::cpu::Call;
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::vector::{exp, max, order_key, sigmoid, softplus, sum, vectorized, widen};

pub(super) fn run<T: Float>(call: &Call) {
    let p: Params = call.params();
    let (experts, top_k) = (p.experts as usize, p.top_k as usize);
    let (logits, ids, weights) = (call.view::<T>(0), call.view::<u32>(3), call.view::<f32>(4));
    let work = Work {
        p,
        bias: if p.has_bias != 0 { call.slice::<f32>(1) } else { &[] },
        expert_scale: if p.has_expert_scale != 0 { call.slice::<f32>(2) } else { &[] },
    };
    // A score costs as much as some elements of a plain loop.
    call.pool.parallel_ranges(p.tokens as usize, call.grain(8 * experts), &|tokens| {
        with_scratch(2 * experts, |scores: &mut [f32]| {
            with_scratch(2 * experts, |candidates: &mut [u64]| {
                let (scores, wide) = scores.split_at_mut(experts);
                for token in tokens {
                    // SAFETY: nothing writes the logits.
                    let row = unsafe { logits.row(token * p.stride as usize, experts) };
                    vectorized(
                        #[inline(always)]
                        || {
                            widen(row, wide);
                            work.scores(wide, scores);
                            work.keys(wide, scores, &mut candidates[..experts]);
                        },
                    );
                    // SAFETY: tasks have disjoint tokens.
                    let (chosen, weights) =
                        unsafe { (ids.row_mut(token * top_k, top_k), weights.row_mut(token * top_k, top_k)) };
                    work.choose(candidates, chosen);
                    work.weigh(scores, chosen, weights);
                }
            });
        });
    });
}

struct Work<'a> {
    p: Params,
    bias: &'a [f32],
    expert_scale: &'a [f32],
}

impl Work<'_> {
    #[inline(always)]
    fn scores(&self, logits: &[f32], scores: &mut [f32]) {
        let each = scores.iter_mut().zip(logits);
        if self.p.score == RouterScore::Sigmoid.code() {
            each.for_each(|(s, &x)| *s = sigmoid(x));
        } else if self.p.score == RouterScore::SqrtSoftplus.code() {
            each.for_each(|(s, &x)| *s = softplus(x).sqrt());
        } else {
            let most = max(logits);
            // Infinities have no difference; NaN passes.
            each.for_each(|(s, &x)| *s = if x == f32::NEG_INFINITY { 0.0 } else { exp(x - most) });
            if self.p.by_score != 0 || self.p.renormalize == 0 {
                let total = sum(scores);
                let factor = if total == 0.0 { 1.0 } else { 1.0 / total };
                scores.iter_mut().for_each(|s| *s *= factor);
            }
        }
    }

    #[inline(always)]
    fn keys(&self, logits: &[f32], scores: &[f32], candidates: &mut [u64]) {
        if self.p.by_score == 0 {
            candidates.iter_mut().zip(logits).enumerate().for_each(|(i, (c, &x))| *c = candidate(x, i));
        } else if self.bias.is_empty() {
            candidates.iter_mut().zip(scores).enumerate().for_each(|(i, (c, &s))| *c = candidate(s, i));
        } else {
            let biased = scores.iter().zip(self.bias).map(|(s, b)| s + b);
            candidates.iter_mut().zip(biased).enumerate().for_each(|(i, (c, s))| *c = candidate(s, i));
        }
    }

    /// Writes the best experts. The candidates of all experts come first, then room for groups.
    fn choose(&self, candidates: &mut [u64], ids: &mut [u32]) {
        let p = &self.p;
        let (all, groups) = candidates.split_at_mut(p.experts as usize);
        let mut allowed = all.len();
        if p.n_group > 1 {
            let size = (p.experts / p.n_group) as usize;
            let groups = &mut groups[..p.n_group as usize];
            for (g, (group, members)) in groups.iter_mut().zip(all.chunks_exact(size)).enumerate() {
                let (mut first, mut second) = (0, 0);
                for &member in members {
                    second = second.max(member.min(first));
                    first = first.max(member);
                }
                let sums = p.group_score == GroupScore::SumOfTopTwo.code();
                *group = candidate(if sums { value(first) + value(second) } else { value(first) }, g);
            }
            let groups = best(groups, p.topk_group as usize);
            groups.sort_unstable_by_key(|&group| place(group));
            allowed = 0;
            for &mut group in groups {
                // To the front, over members of groups that are left out or are there already.
                all.copy_within(place(group) * size..(place(group) + 1) * size, allowed);
                allowed += size;
            }
        }
        let chosen = best(&mut all[..allowed], p.top_k as usize);
        for (id, &c) in ids.iter_mut().zip(chosen.iter()) {
            *id = place(c) as u32;
        }
    }

    fn weigh(&self, scores: &[f32], ids: &[u32], weights: &mut [f32]) {
        let mut sum = 0.0;
        for (w, &id) in weights.iter_mut().zip(ids) {
            *w = scores[id as usize];
            sum += *w;
        }
        let scale = if self.p.renormalize != 0 { self.p.scale / (sum + 1e-20) } else { self.p.scale };
        for (w, &id) in weights.iter_mut().zip(ids) {
            *w *= scale * self.expert_scale.get(id as usize).copied().unwrap_or(1.0);
        }
    }
}

#[inline(always)]
fn candidate(x: f32, place: usize) -> u64 {
    (order_key(x) as u64) << 32 | !(place as u32) as u64
}

fn place(candidate: u64) -> usize {
    !(candidate as u32) as usize
}

/// What a candidate was made from.
fn value(candidate: u64) -> f32 {
    let key = (candidate >> 32) as u32;
    f32::from_bits(if key >> 31 == 1 { key & 0x7fff_ffff } else { !key })
}

/// The best `k`, best first.
fn best(candidates: &mut [u64], k: usize) -> &mut [u64] {
    if k > 0 && k < candidates.len() {
        candidates.select_nth_unstable_by(k - 1, |a, b| b.cmp(a));
    }
    let best = &mut candidates[..k];
    best.sort_unstable_by(|a, b| b.cmp(a));
    best
}
