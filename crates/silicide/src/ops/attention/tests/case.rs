//! A case of attention on any device, and its definition.

use super::*;

/// A case: sizes, and what [`Attention`] says.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) queries: usize,
    pub(super) keys: usize,
    pub(super) kv_heads: usize,
    pub(super) group: usize,
    pub(super) dim: usize,
    pub(super) shows: Shows,
    pub(super) window: Option<usize>,
    pub(super) softcap: Option<f32>,
    pub(super) sinks: bool,
    /// Whether the cache has heads before tokens.
    pub(super) head_major: bool,
    pub(super) cache: Kept,
    pub(super) mask: Option<Masked>,
    pub(super) types: usize,
    /// Whether scores of some heads go up, and of others down, by far more than e from each 48 keys to the next.
    pub(super) steep: bool,
    pub(super) seed: u64,
}

/// A [`Mask`] without its tensor.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shows {
    Full,
    Causal,
    /// The position of the first query: below 0 it sees nothing.
    From(i64),
}

/// A [`CacheLayout`] without its tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kept {
    Rows,
    /// Of so many rows.
    Ring(usize),
    /// Of so many rows each, and whether some are missing.
    Pages(usize, bool),
}

/// A mask that is a tensor, of a float type or bool: of one head without or with an axis of it, or of each head; and whether
/// all queries share a row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Masked {
    pub(super) dtype: DType,
    pub(super) heads: usize,
    pub(super) shared: bool,
}

impl Case {
    fn sees(&self, query: usize, key: usize) -> bool {
        let end = match self.shows {
            // Beside a mask a window ends at the query's own place.
            Shows::Full if self.mask.is_none() || self.window.is_none() => self.keys as i64,
            Shows::Full | Shows::Causal => (self.keys - self.queries + query) as i64 + 1,
            Shows::From(p) => (p + query as i64 + 1).min(self.keys as i64),
        };
        let there = match self.cache {
            Kept::Rows => true,
            Kept::Ring(rows) => key + rows >= self.written(),
            Kept::Pages(size, _) => self.page(key / size).is_some(),
        };
        there && (key as i64) < end && self.window.is_none_or(|w| (key + w) as i64 >= end)
    }

    /// Positions that a ring was written with.
    fn written(&self) -> usize {
        let Shows::From(first) = self.shows else { panic!("a ring goes by positions") };
        (first + self.queries as i64).max(0) as usize
    }

    /// The page of some positions, of as many pages as they take and two more.
    fn page(&self, i: usize) -> Option<usize> {
        let Kept::Pages(size, holes) = self.cache else { return None };
        let pages = self.keys.div_ceil(size) + 2;
        (!holes || !(i + self.seed as usize % 5).is_multiple_of(5)).then(|| pages - 1 - i)
    }

    /// What a cache holds of the rows of all positions, and its shape before heads; no number where there is nothing.
    fn stored(&self, values: &[f32]) -> (Vec<f32>, Vec<usize>) {
        let size = self.kv_heads * self.dim;
        let shape = match self.cache {
            Kept::Rows => return (values.to_vec(), vec![self.keys]),
            Kept::Ring(rows) => vec![rows],
            Kept::Pages(size, _) => vec![self.keys.div_ceil(size) + 2, size],
        };
        let mut stored = vec![f32::NAN; shape.iter().product::<usize>() * size];
        for position in 0..self.written().min(self.keys) {
            let row = match self.cache {
                Kept::Ring(rows) => Some(position % rows),
                Kept::Pages(size, _) => self.page(position / size).map(|page| page * size + position % size),
                Kept::Rows => None,
            };
            if let Some(row) = row {
                stored[row * size..][..size].copy_from_slice(&values[position * size..][..size]);
            }
        }
        (stored, shape)
    }

    /// What the mask adds, `[heads, queries, keys]`: whole tiles that hide or add nothing, and mixed ones.
    fn terms(&self) -> Vec<f32> {
        let Some(mask) = self.mask else { return Vec::new() };
        let (heads, queries) = (mask.heads.max(1), if mask.shared { 1 } else { self.queries });
        let mut random = Random::new(self.seed ^ 77);
        let tiles: Vec<usize> = (0..97).map(|_| random.below(4)).collect();
        let mut terms = Vec::new();
        for head in 0..heads {
            for query in 0..queries {
                for key in 0..self.keys {
                    let tile = tiles[(head * 31 + query / 32 * 7 + key / 32) % 97];
                    let term = random.value();
                    terms.push(match (tile, random.below(5)) {
                        (0, _) | (2.., 0 | 1) => f32::NEG_INFINITY,
                        (1, _) | (2.., 2) => 0.0,
                        _ if mask.dtype == DType::Bool => 0.0,
                        _ => term,
                    });
                }
            }
        }
        rounded(mask.dtype, &terms)
    }

    fn mask_tensor(&self, device: &Device, random: &mut Random) -> Option<Tensor> {
        let mask = self.mask?;
        let shape = [mask.heads.max(1), if mask.shared { 1 } else { self.queries }, self.keys];
        let t = match mask.dtype {
            DType::Bool => {
                let seen: Vec<u8> = self.terms().iter().map(|&t| (t == 0.0) as u8).collect();
                device.tensor_from_bytes(&seen, DType::Bool, shape).unwrap()
            }
            dtype => random.tensor(device, dtype, &self.terms(), shape),
        };
        let t = t.broadcast_to([shape[0], self.queries, self.keys]).unwrap();
        Some(if mask.heads == 0 { t.slice(0, 0..1).unwrap().reshape([self.queries, self.keys]).unwrap() } else { t })
    }
}

/// The definition, in f64.
pub(super) fn reference(c: &Case, scale: f64, q: &[f32], k: &[f32], v: &[f32], sinks: &[f32]) -> Vec<f64> {
    let mut out = Vec::new();
    let terms = c.terms();
    for query in 0..c.queries {
        for head in 0..c.kv_heads * c.group {
            let q = &q[(query * c.kv_heads * c.group + head) * c.dim..][..c.dim];
            let row = |key: usize| (key * c.kv_heads + head / c.group) * c.dim..;
            let term = |key: usize| match c.mask {
                None => 0.0,
                Some(mask) => {
                    let (head, query) = (head.min(mask.heads.max(1) - 1), if mask.shared { 0 } else { query });
                    terms[(head * if mask.shared { 1 } else { c.queries } + query) * c.keys + key]
                }
            };
            let shown = |key: &usize| c.sees(query, *key) && term(*key) != f32::NEG_INFINITY;
            let seen: Vec<usize> = (0..c.keys).filter(shown).collect();
            let scores: Vec<f64> = seen
                .iter()
                .map(|&key| {
                    let s = scale * q.iter().zip(&k[row(key)]).map(|(&a, &b)| a as f64 * b as f64).sum::<f64>();
                    c.softcap.map_or(s, |cap| cap as f64 * (s / cap as f64).tanh()) + term(key) as f64
                })
                .collect();
            let sink = c.sinks.then(|| sinks[head] as f64);
            let highest = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - highest).exp()).collect();
            let total = weights.iter().sum::<f64>() + sink.map_or(0.0, |s| (s - highest).exp());
            out.extend(
                (0..c.dim)
                    .map(|d| seen.iter().zip(&weights).map(|(&i, w)| w / total * v[row(i)][d] as f64).sum::<f64>()),
            );
        }
    }
    out
}

pub(super) fn check_case(stream: &mut Stream, c: &Case) {
    // NVIDIA GPUs have forms of their own for rows that vectors fit.
    let both = stream.device().takes_nvidia_kernels() && [4, 8].contains(&c.types);
    for unit in if both { vec![1, 8] } else { vec![[1, 8][c.seed as usize % 2]] } {
        check_laid_out(stream, c, unit);
    }
}

/// With tensors that start and have gaps at multiples of `unit`.
fn check_laid_out(stream: &mut Stream, c: &Case, unit: usize) {
    let (dtype, cache_dtype) = (DType::FLOATS[c.types % 3], DType::FLOATS[c.types / 3]);
    let heads = c.kv_heads * c.group;
    let device = &stream.device().clone();
    let mut random = Random::new(c.seed);
    let (mut q, mut k) = (random.values(c.queries * heads * c.dim), random.values(c.keys * c.kv_heads * c.dim));
    if c.steep {
        let ups = [1.0, -1.0, 0.06, 0.25].map(|up| up * (c.dim as f32).sqrt());
        q.chunks_mut(c.dim).enumerate().for_each(|(i, q)| q[0] = ups[i % heads % 4]);
        k.chunks_mut(c.dim).enumerate().for_each(|(i, k)| k[0] = (8 * (i / c.kv_heads / 48)) as f32);
    }
    let (q, k) = (rounded(dtype, &q), rounded(cache_dtype, &k));
    let v = rounded(cache_dtype, &random.values(c.keys * c.kv_heads * c.dim));
    let sinks = random.values(heads);
    let qt = random.tensor_by(unit, device, dtype, &q, [c.queries, heads, c.dim]);
    let [kt, vt] = [&k, &v].map(|values| {
        let (values, mut shape) = c.stored(values);
        shape.extend([c.kv_heads, c.dim]);
        let t = random.tensor_by(unit, device, cache_dtype, &values, crate::Shape::new(&shape).unwrap());
        if !c.head_major {
            return t;
        }
        // Heads before rows, and a row more than is shown.
        let (rows, last) = (shape.len() - 3, shape.len() - 1);
        let mut turned: Vec<usize> = (0..=last).collect();
        turned.swap(rows, rows + 1);
        let mut wide: Vec<usize> = turned.iter().map(|&axis| shape[axis]).collect();
        wide[rows + 1] += 1;
        let cache = device.zeros(cache_dtype, crate::Shape::new(&wide).unwrap()).unwrap();
        let cache = cache.slice(rows + 1, 1..wide[rows + 1]).unwrap().permute(&turned).unwrap();
        crate::ops::copy_into(stream, &t, &cache).unwrap();
        cache
    });
    let pages = if let Kept::Pages(size, _) = c.cache { c.keys.div_ceil(size) } else { 0 };
    // Pages that are not there are beyond the last, or below 0.
    let table = (0..pages).map(|i| c.page(i).map_or([-1, pages as i32 + 2][i % 2], |page| page as i32));
    let table = device.tensor(&table.collect::<Vec<_>>(), [pages]).unwrap();
    let mask_tensor = c.mask_tensor(device, &mut random);
    let first = if let Shows::From(p) = c.shows { p } else { 0 };
    let positions: Vec<i32> = (0..c.queries as i64).map(|t| (first + t) as i32).collect();
    let positions = device.tensor(&positions, [c.queries]).unwrap();
    let sinks_t = device.tensor(&sinks, [heads]).unwrap();
    let scale = 1.0 / (c.dim as f32).sqrt();
    let options = Attention {
        scale,
        mask: match (&mask_tensor, c.shows) {
            (Some(t), _) if t.dtype() == DType::Bool => Mask::Boolean(t),
            (Some(t), _) => Mask::Additive(t),
            (None, Shows::Full) => Mask::Full,
            (None, Shows::Causal) => Mask::Causal,
            (None, Shows::From(_)) => Mask::Positions(&positions),
        },
        window: c.window,
        softcap: c.softcap,
        sinks: c.sinks.then_some(&sinks_t),
        cache: match c.cache {
            Kept::Rows => CacheLayout::Rows,
            Kept::Ring(_) => CacheLayout::Ring,
            Kept::Pages(..) => CacheLayout::Pages(&table),
        },
    };
    let out = random.tensor_by(unit, device, dtype, &vec![7.0; q.len()], *qt.shape());
    attention_into(stream, &qt, &kt, &vt, options, &out).unwrap();
    let want = reference(c, scale as f64, &q, &k, &v, &sinks);
    // A GPU rounds the weights of many queries to their type, and with them a sum of values up to 2.
    let rounded_weights = device.as_cpu().is_none() && c.queries > 16;
    let slack = match dtype {
        DType::F16 if rounded_weights => 2f64.powi(-11) / 4e-6,
        DType::BF16 if rounded_weights => 2f64.powi(-8) / 4e-6,
        _ => 1.0,
    };
    // Scores near 50 are good to 50 units of f32, and weights with them.
    let of_scores = if c.steep { 8.0 } else { 0.0 };
    assert_close(dtype, &values_of(stream, &out), &want, 2.0 * slack + of_scores);
}

pub(super) fn cases() -> impl Strategy<Value = Case> {
    let dim = prop_oneof![
        Just(1usize),
        Just(31),
        Just(33),
        Just(64),
        Just(65),
        Just(80),
        Just(96),
        Just(128),
        Just(192),
        Just(256),
        Just(512),
        1usize..512
    ];
    let keys = prop_oneof![Just(1usize), Just(31), Just(33), Just(65), 1usize..140];
    let group = prop_oneof![Just(1usize), Just(2), Just(3), Just(4), Just(7), Just(8), Just(9)];
    let shows = prop_oneof![Just(Shows::Full), Just(Shows::Causal), (-9i64..140).prop_map(Shows::From)];
    let sizes = (1usize..11, keys, 1usize..3, group, dim);
    let options = (
        shows,
        proptest::option::of(1usize..70),
        proptest::option::of(1.0f32..30.0),
        any::<(bool, bool)>(),
        prop_oneof![
            Just(Kept::Rows),
            (1usize..80).prop_map(Kept::Ring),
            (1usize..40, any::<bool>()).prop_map(|(size, holes)| Kept::Pages(size, holes))
        ],
        proptest::option::of((0usize..4, 0usize..3, any::<bool>())),
        0usize..9,
        any::<u64>(),
    );
    (sizes, options).prop_map(
        |(
            (queries, keys, kv_heads, group, dim),
            (shows, window, softcap, (sinks, head_major), cache, mask, types, seed),
        )| {
            // Causal queries have a key each; and large cases are not larger than they must be.
            let by_place = matches!(shows, Shows::Causal) || mask.is_some();
            let most = if by_place { keys } else { 10 };
            let queries = queries.min(most).min((4000 / (group * kv_heads * dim)).max(1));
            let cache = if let Shows::From(_) = shows { cache } else { Kept::Rows };
            let keys = match shows {
                // A ring has all positions to the last query's.
                Shows::From(first) if cache != Kept::Rows => keys.max((first + queries as i64).max(0) as usize),
                _ => keys,
            };
            let mask = mask.filter(|_| matches!(shows, Shows::Full)).map(|(dtype, heads, shared)| Masked {
                dtype: [DType::F32, DType::F16, DType::BF16, DType::Bool][dtype],
                heads: [0, 1, kv_heads * group][heads],
                shared,
            });
            Case {
                queries,
                keys,
                kv_heads,
                group,
                dim,
                shows,
                window,
                softcap,
                sinks,
                head_major,
                cache,
                mask,
                types,
                steep: false,
                seed,
            }
        },
    )
}

/// Queries at the last keys, two heads a key head.
pub(super) const PLAIN: Case = Case {
    queries: 3,
    keys: 33,
    kv_heads: 1,
    group: 2,
    dim: 33,
    shows: Shows::Causal,
    window: None,
    softcap: None,
    sinks: false,
    head_major: false,
    cache: Kept::Rows,
    mask: None,
    types: 0,
    steep: false,
    seed: 1,
};
