//! Rows are gathered by expert, multiplied expert by expert in one go, by both stacks where there are two, and put back.

use std::ops::Range;
use std::sync::Arc;

use super::Params;
use crate::Float;
use crate::device::cpu::scratch::with_scratch;
use crate::device::cpu::vector::{narrow, vectorized, widen};
use crate::device::cpu::{Call, View};
use crate::ops::glu::cpu::multiply_gated;
use crate::ops::matmul::cpu::{Factor, Method, PackLayout, Precision, Rows, RowsMut, matmul};

/// What parameters cannot hold.
pub(super) struct Context {
    /// Of each expert; their packed forms follow each other.
    pub(super) layout: Arc<PackLayout>,
    pub(super) precision: Precision,
    /// The code of a [`Gate`](crate::ops::Gate) where there is a second stack.
    pub(super) gate: Option<u32>,
}

impl Context {
    /// What `explain` says of it.
    pub(super) fn reason(&self) -> &'static str {
        match self.precision {
            Precision::F32 => "f32, as asked",
            Precision::Reduced => "each expert by how many rows it has, as matmul",
        }
    }
}

/// Numbers of gathered rows that scratch memory holds at once, with their results. Tests have several blocks too.
const BLOCK: usize = if cfg!(test) { 1 << 11 } else { 4 << 20 };

/// Places that one expert multiplies.
struct Part {
    expert: usize,
    places: Range<usize>,
    method: Method,
}

pub(super) fn run<T: Float>(call: &Call) {
    let p: Params = call.params();
    let Context { layout, precision, gate } = call.context();
    let ids = call.slice::<u32>(1);
    let (order, tiles): (&[u32], &[u32]) =
        if p.is_grouped != 0 { (call.slice::<u32>(2), call.slice::<u32>(3)) } else { (&[], &[]) };
    let (experts, n, k) = (p.experts as usize, p.n as usize, p.k as usize);
    let work = Work::<T> {
        p,
        call,
        layout,
        precision: *precision,
        gate: *gate,
        order,
        x: call.view::<T>(0),
        weights: [call.slice::<u8>(4), if gate.is_some() { call.slice::<u8>(7) } else { &[] }],
        bias: if p.has_bias != 0 { call.slice::<T>(5) } else { &[] },
        out: call.view::<T>(6),
    };
    let block = (BLOCK / (n * work.products() + k)).max(1);
    let mut parts = Vec::new();
    let mut add = |expert: usize, places: Range<usize>| {
        if expert >= experts {
            return work.clear(places);
        }
        for first in places.clone().step_by(block) {
            let places = first..places.end.min(first + block);
            let method = Method::of(layout, call.features, *precision, places.len());
            parts.push(Part { expert, places, method });
        }
    };
    if p.is_grouped != 0 {
        for tile in tiles.chunks_exact(3) {
            add(tile[0] as usize, tile[1] as usize..(tile[1] + tile[2]) as usize);
        }
    } else {
        ids.iter().enumerate().for_each(|(pair, &id)| add(id as usize, pair..pair + 1));
    }
    // Each way of taking products wants its rows together.
    parts.sort_by_key(|part| part.method as u8);
    for parts in parts.chunk_by(|a, b| a.method == b.method) {
        let mut rest = parts;
        while !rest.is_empty() {
            let mut rows = 0;
            let fit = |part: &&Part| {
                rows += part.places.len();
                rows <= block
            };
            let count = rest.iter().take_while(fit).count().max(1);
            let (now, later) = rest.split_at(count);
            work.multiply(now);
            rest = later;
        }
    }
}

struct Work<'a, T> {
    p: Params,
    call: &'a Call<'a>,
    layout: &'a PackLayout,
    precision: Precision,
    gate: Option<u32>,
    /// The pair at each place; empty where they are the same.
    order: &'a [u32],
    x: View<'a, T>,
    weights: [&'a [u8]; 2],
    bias: &'a [T],
    out: View<'a, T>,
}

impl<T: Float> Work<'_, T> {
    fn pair(&self, place: usize) -> usize {
        self.order.get(place).map_or(place, |&pair| pair as usize)
    }

    /// Products of a pair.
    fn products(&self) -> usize {
        if self.gate.is_some() { 2 } else { 1 }
    }

    fn clear(&self, places: Range<usize>) {
        for place in places {
            // SAFETY: this task is alone.
            let out = unsafe { self.out.row_mut(self.pair(place) * self.p.out_stride as usize, self.p.n as usize) };
            out.fill(T::from_f32(0.0));
        }
    }

    fn multiply(&self, parts: &[Part]) {
        let (n, k) = (self.p.n as usize, self.p.k as usize);
        let pool = self.call.pool;
        let places: Vec<(usize, usize)> =
            parts.iter().flat_map(|part| part.places.clone().map(|place| (part.expert, self.pair(place)))).collect();
        // Where all pairs are one token's, and it has one row for all, that row is read once.
        let one_row = self.p.is_grouped == 0 && self.p.slots_of_x == self.p.pairs;
        let x_rows = if one_row { 1 } else { places.len() };
        with_scratch(x_rows * k + places.len() * n * self.products(), |scratch: &mut [f32]| {
            let (wide_x, wide_out) = scratch.split_at_mut(x_rows * k);
            let rows = View::over(&mut *wide_x);
            pool.parallel_ranges(x_rows, self.call.grain(k), &|range| {
                vectorized(
                    #[inline(always)]
                    || {
                        for row in range {
                            let from = places[row].1 / self.p.slots_of_x as usize * self.p.x_stride as usize;
                            // SAFETY: nothing writes x, and tasks have disjoint rows.
                            unsafe { widen(self.x.row(from, k), rows.row_mut(row * k, k)) };
                        }
                    },
                );
            });
            let x = Rows::new(wide_x, x_rows, k, k).expect("the scratch is as long");
            let mut rest = &mut *wide_out;
            let size = self.layout.bytes();
            let mut factors: Vec<Factor> = Vec::with_capacity(parts.len() * self.products());
            for weights in &self.weights[..self.products()] {
                let mut first = 0;
                for part in parts {
                    let m = part.places.len();
                    let (out, after) = std::mem::take(&mut rest).split_at_mut(m * n);
                    rest = after;
                    let rows = if one_row { 0..1 } else { first..first + m };
                    first += m;
                    factors.push(Factor {
                        layout: self.layout,
                        weight: &weights[part.expert * size..][..size],
                        rows,
                        out: RowsMut::new(out, m, n, n).expect("the scratch is as long"),
                    });
                }
            }
            matmul(pool, self.call.features, self.precision, x, &mut factors).expect("shapes were checked");
            let (wide_out, ups) = wide_out.split_at_mut(places.len() * n);
            let wide_out = View::over(wide_out);
            pool.parallel_ranges(places.len(), self.call.grain(n), &|range| {
                vectorized(
                    #[inline(always)]
                    || {
                        for row in range {
                            let (expert, pair) = places[row];
                            // SAFETY: tasks have disjoint rows, and each pair is one row's.
                            let (wide, out) = unsafe {
                                (wide_out.row_mut(row * n, n), self.out.row_mut(pair * self.p.out_stride as usize, n))
                            };
                            if let Some(bias) = self.bias.get(expert * n..(expert + 1) * n) {
                                wide.iter_mut().zip(bias).for_each(|(o, b)| *o += b.to_f32());
                            }
                            if let Some(gate) = self.gate {
                                multiply_gated(gate, wide, &ups[row * n..][..n]);
                            }
                            narrow(wide, out);
                        }
                    },
                );
            });
        });
    }
}
