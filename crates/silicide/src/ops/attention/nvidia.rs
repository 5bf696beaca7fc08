//! The forms for NVIDIA's tensor cores: `decode.cu` for few queries, `prefill.cu` for many.

use super::{KernelParams, KernelSource, Params};
use crate::{DType, Device, Tensor};

/// Whether they are taken: for one type of 16 bits, heads of whole sixteens, and rows that lie aligned.
pub(super) fn fits(device: &Device, q: &Tensor, k: &Tensor, v: &Tensor, p: &Params) -> bool {
    device.takes_nvidia_kernels()
        && q.dtype() != DType::F32
        && k.dtype() == q.dtype()
        && p.masked == 0
        && p.dim.is_multiple_of(16)
        && p.dim <= 256
        && [q, k, v].iter().all(|t| t.vectors_align(8))
}

/// How `prefill.cu` shares the work out.
pub(in crate::ops) struct Prefill {
    dim: u32,
    /// Sixteens of queries that a simdgroup takes.
    m: u32,
    simdgroups: u32,
}

impl Prefill {
    /// Keys that a threadgroup takes at a time.
    const TILE: u32 = 64;

    /// For so many tiles of 128 queries, of all heads, for each processor. None where the GPU has too little threadgroup memory.
    pub(in crate::ops) fn of(dim: u32, tiles: f32, memory: u32) -> Option<Prefill> {
        // Matrices that more queries share are read less often, if there are two threadgroups for each processor still. Of wide
        // heads eight simdgroups have the registers of a processor, and share what it has memory for once.
        let forms: &[(u32, u32)] = match dim {
            65..=128 if tiles >= 2.0 => &[(2, 4), (1, 4)],
            129.. => &[(1, 8), (1, 4)],
            _ => &[(1, 4)],
        };
        let mut forms = forms.iter().map(|&(m, simdgroups)| Prefill { dim, m, simdgroups });
        forms.find(|form| form.threadgroup_memory() + DECLARED <= memory)
    }

    /// Queries of a threadgroup.
    pub(super) fn queries(&self) -> u32 {
        16 * self.m * self.simdgroups
    }

    pub(super) fn threads(&self) -> u32 {
        32 * self.simdgroups
    }

    /// Bytes of threadgroup memory: two tiles of keys and of values, and one of queries.
    pub(super) fn threadgroup_memory(&self) -> u32 {
        (4 * Prefill::TILE + self.queries()) * self.dim.next_multiple_of(64) * 2 + 128
    }

    pub(in crate::ops) fn defines(&self) -> String {
        let Prefill { dim, m, simdgroups } = self;
        format!("\n#define DIM {dim}\n#define M {m}\n#define SIMDGROUPS {simdgroups}")
    }
}

/// How `decode.cu` shares the work out.
pub(in crate::ops) struct Decode {
    dim: u32,
    /// Of eight query heads.
    tiles: u32,
    stages: u32,
    /// That the keys of a query are computed in.
    pub(super) parts: u32,
}

/// Threads of a threadgroup: four simdgroups.
pub(super) const THREADS: u32 = 128;
const SIMDGROUPS: u32 = THREADS / 32;
/// Keys that a simdgroup takes at a time.
const KEYS: u32 = 16;
/// Keys that are not parted.
const FEW_KEYS: u32 = 128;
/// Bytes that the kernel declares, at most.
const DECLARED: u32 = 1 << 10;

impl Decode {
    /// None where more heads share keys than two tiles have, or a threadgroup of so much memory holds no stages.
    pub(super) fn of(p: &Params, memory: u32) -> Option<Decode> {
        // As many threadgroups as a large GPU runs at once are the fastest: one on a processor of wide heads, two of others. As
        // elsewhere the queries have no say.
        let enough = if p.dim > 128 { 128 } else { 256 };
        let keys = if p.window == 0 { p.keys } else { p.window.min(p.keys) };
        let parts = match keys {
            // The launch that joins would take longer than what it saves.
            ..=FEW_KEYS => 1,
            _ => (enough / p.kv_heads).min(keys.div_ceil(SIMDGROUPS * KEYS)).clamp(1, super::MOST_PARTS),
        };
        let heads = p.q_heads / p.kv_heads;
        let form = Decode { parts, ..Decode::shaped(p.dim, heads, memory) };
        (heads <= 16 && form.threadgroup_memory() + DECLARED <= memory).then_some(form)
    }

    pub(in crate::ops) fn shaped(dim: u32, heads: u32, memory: u32) -> Decode {
        // Two threadgroups, or one of wide heads, fill the memory of a processor of Hopper; others have less.
        let most = if dim <= 64 { 6 } else { 3 };
        let stage = SIMDGROUPS * 2 * KEYS * dim.next_multiple_of(64) * 2;
        let stages = (memory.saturating_sub(DECLARED) / stage).clamp(2, most);
        Decode { dim, tiles: heads.div_ceil(8), stages, parts: 1 }
    }

    /// Bytes that the stages take, and at the end the sums of all simdgroups.
    pub(super) fn threadgroup_memory(&self) -> u32 {
        let tile = KEYS * self.dim.next_multiple_of(64) * 2;
        let sums = self.tiles * 8 * (self.dim.next_multiple_of(32) + 4) * 4;
        SIMDGROUPS * (self.stages * 2 * tile).max(sums) + 128
    }

    pub(in crate::ops) fn defines(&self) -> String {
        let Decode { dim, tiles, stages, .. } = self;
        format!("\n#define DIM {dim}\n#define TILES {tiles}\n#define STAGES {stages}")
    }
}

pub(in crate::ops) static DECODE: KernelSource =
    KernelSource { name: "attention/decode.cu", params: &[Params::DECLARATION], body: include_str!("decode.cu") };

pub(in crate::ops) static PREFILL: KernelSource =
    KernelSource { name: "attention/prefill.cu", params: &[Params::DECLARATION], body: include_str!("prefill.cu") };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smaller_processors_take_fewer_queries_at_once() {
        let queries = |dim, tiles, memory: u32| Prefill::of(dim, tiles, memory << 10).map_or(0, |form| form.queries());
        for (dim, tiles, wanted) in
            [(64, 9.0, [64; 3]), (128, 1.0, [64; 3]), (128, 2.0, [64, 128, 128]), (256, 9.0, [0, 64, 128])]
        {
            assert_eq!([97, 163, 227].map(|memory| queries(dim, tiles, memory)), wanted, "heads of {dim}");
        }
    }

    /// What processors of compute capability 8.6, 8.0 and 9.0 have.
    #[test]
    fn smaller_processors_have_fewer_stages_or_the_plain_form() {
        for (dim, heads, stages) in [(64, 8, [6, 6, 6]), (128, 4, [3, 3, 3]), (128, 16, [3, 3, 3]), (256, 6, [0, 2, 3])]
        {
            for (memory, stages) in [99 << 10, 163 << 10, 227 << 10].into_iter().zip(stages) {
                let form = Decode::shaped(dim, heads, memory);
                let fits = form.threadgroup_memory() + DECLARED <= memory;
                assert_eq!(if fits { form.stages } else { 0 }, stages, "heads of {dim}, {memory} bytes");
            }
        }
    }
}
