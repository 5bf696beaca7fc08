//! Which keys queries see, and how the parts of a softmax are joined: for attention over rows and over quantised ones.

use std::ops::Range;

use crate::device::cpu::Call;
use crate::device::cpu::simd::LANES;
use crate::device::cpu::vector::{exp, vectorized};
use crate::ops::attention::{CAUSAL, FULL, POSITIONS};

/// Keys in a part, which has a softmax of its own.
pub(in crate::ops) const PART: usize = 128;

/// What decides which keys a query sees, but for masks.
pub(in crate::ops) struct Sight<'a> {
    queries: u32,
    keys: u32,
    window: u32,
    /// `FULL`, `CAUSAL` or `POSITIONS`.
    mask: u32,
    ring: bool,
    positions: Option<&'a [u32]>,
    /// The first position that a ring still has.
    oldest: usize,
}

impl<'a> Sight<'a> {
    /// With positions, where the mask is of them, in argument `at`.
    pub(in crate::ops) fn new(call: &'a Call, at: usize, [queries, keys, window, mask, ring]: [u32; 5]) -> Sight<'a> {
        let positions = (mask == POSITIONS).then(|| call.slice::<u32>(at));
        let latest = || positions?.iter().map(|&p| p as i32 as i64).max();
        let oldest = if ring != 0 { (latest().unwrap_or(-1) + 1 - keys as i64).max(0) as usize } else { 0 };
        Sight { queries, keys, window, mask, ring: ring != 0, positions, oldest }
    }

    /// The most parts that there may be, though few keys may be seen yet: a cache that fills allocates nothing. A ring's first
    /// and last part may both be cut.
    pub(in crate::ops) fn most_parts(&self) -> usize {
        (self.keys as usize).div_ceil(PART) + self.ring as usize
    }

    /// The positions that a query sees.
    fn visible(&self, query: usize) -> Range<usize> {
        let keys = self.keys as i64;
        let end = match self.mask {
            FULL => keys,
            CAUSAL => keys - self.queries as i64 + query as i64 + 1,
            _ => {
                let position = self.positions.map_or(0, |p| p[query] as i32 as i64);
                (position + 1).clamp(0, if self.ring { i64::MAX } else { keys })
            }
        };
        let start = if self.window == 0 { 0 } else { (end - self.window as i64).max(0) };
        (start as usize).max(self.oldest).min(end as usize)..end as usize
    }

    /// The `tile`th `N` queries with a head of keys, which `group` heads of a query share.
    pub(in crate::ops) fn tile<const N: usize>(&self, tile: usize, kv_head: usize, group: usize) -> Tile<N> {
        let first = tile * N;
        let queries = N.min(self.queries as usize - first);
        let visible = std::array::from_fn(|i| if i < queries { self.visible(first + i) } else { 0..0 });
        let seen = || visible.iter().filter(|r| !r.is_empty());
        let start = seen().map(|r| r.start).min().unwrap_or(0);
        let end = seen().map(|r| r.end).max().unwrap_or(0);
        Tile { first, kv_head, rows: queries * group, group, keys: start..end, visible }
    }
}

/// Some queries, and the heads of them that share a key head. Each query and head is a row, a query's heads together, with a state:
/// weighted values, and in the vector behind them the greatest score and the sum of weights.
pub(in crate::ops) struct Tile<const N: usize> {
    pub(in crate::ops) first: usize,
    pub(in crate::ops) kv_head: usize,
    pub(in crate::ops) rows: usize,
    /// Query heads for a key head.
    pub(in crate::ops) group: usize,
    /// From the first to the last key that any of the queries sees.
    pub(in crate::ops) keys: Range<usize>,
    /// The keys that each query sees.
    visible: [Range<usize>; N],
}

impl<const N: usize> Tile<N> {
    /// The parts in which there are keys that any of the queries sees.
    pub(in crate::ops) fn parts(&self) -> Range<usize> {
        self.keys.start / PART..self.keys.end.div_ceil(PART)
    }

    /// The keys of a part that any of the queries may see.
    pub(in crate::ops) fn keys_of(&self, part: usize) -> Range<usize> {
        self.keys.start.max(part * PART)..self.keys.end.min((part + 1) * PART)
    }

    /// The keys that a row sees of `keys`; an empty range lies inside `keys` as well.
    #[inline(always)]
    pub(in crate::ops) fn seen(&self, row: usize, keys: &Range<usize>) -> Range<usize> {
        let visible = &self.visible[row / self.group];
        let start = visible.start.clamp(keys.start, keys.end);
        start..visible.end.clamp(start, keys.end)
    }

    /// The query head of a row.
    fn head(&self, row: usize) -> usize {
        self.kv_head * self.group + row % self.group
    }

    /// Where a row's queries, or its results, lie, given the strides of a query and a head.
    pub(in crate::ops) fn place(&self, row: usize, strides: &[u32; 2]) -> usize {
        (self.first + row / self.group) * strides[0] as usize + self.head(row) * strides[1] as usize
    }

    /// The states of rows that have seen no key yet: a sink is a key without a value.
    pub(in crate::ops) fn begin(&self, sinks: Option<&[f32]>, states: &mut [f32]) {
        let size = states.len() / self.rows;
        for (row, state) in states.chunks_exact_mut(size).enumerate() {
            state.fill(0.0);
            let sink = sinks.map(|s| s[self.head(row)]);
            let total = &mut state[size - LANES..];
            total[0] = sink.unwrap_or(f32::NEG_INFINITY);
            total[1] = if sink.is_some() { 1.0 } else { 0.0 };
        }
    }

    /// Joins the states of a part to those of the parts before it.
    pub(in crate::ops) fn join(&self, states: &mut [f32], parts: &[f32]) {
        let size = states.len() / self.rows;
        vectorized(
            #[inline(always)]
            || {
                for (state, part) in states.chunks_exact_mut(size).zip(parts.chunks_exact(size)) {
                    let (values, total) = state.split_at_mut(size - LANES);
                    let (new_values, new) = part.split_at(size - LANES);
                    // A row that sees nothing of the part has no state there.
                    if new[0] == f32::NEG_INFINITY {
                        continue;
                    }
                    let highest = if total[0] > new[0] || total[0].is_nan() { total[0] } else { new[0] };
                    let (keep, take) = (exp(total[0] - highest), exp(new[0] - highest));
                    total[0] = highest;
                    total[1] = total[1] * keep + new[1] * take;
                    for (x, y) in values.iter_mut().zip(new_values) {
                        *x = *x * keep + y * take;
                    }
                }
            },
        );
    }
}
