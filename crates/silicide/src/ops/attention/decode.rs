//! Few queries on NVIDIA's tensor cores: when the form of `decode.cu` is taken, and how it shares the work out.

use super::{KernelParams, KernelSource, Params};
use crate::{DType, Device, DeviceKind, Tensor};

pub(in crate::ops) struct Form {
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

impl Form {
    /// None where the plain form has to do: other types, heads that are not whole sixteens, rows that do not lie aligned,
    /// more heads than two tiles.
    pub(super) fn of(device: &Device, q: &Tensor, k: &Tensor, v: &Tensor, p: &Params) -> Option<Form> {
        let fits = device.kind() == DeviceKind::Cuda
            && q.dtype() != DType::F32
            && k.dtype() == q.dtype()
            && p.masked == 0
            && p.queries <= 16
            && p.dim.is_multiple_of(16)
            && p.dim <= 256
            && p.q_heads / p.kv_heads <= 16
            && [q, k, v].iter().all(|t| t.vectors_align(8));
        fits.then(|| {
            // One threadgroup for each processor of a large GPU is the fastest; as elsewhere the queries have no say.
            const ENOUGH: u32 = 128;
            let keys = if p.window == 0 { p.keys } else { p.window.min(p.keys) };
            let parts = (ENOUGH / p.kv_heads).min(keys.div_ceil(SIMDGROUPS * KEYS)).clamp(1, super::MOST_PARTS);
            Form { parts, ..Form::shaped(p.dim, p.q_heads / p.kv_heads) }
        })
    }

    pub(in crate::ops) fn shaped(dim: u32, heads: u32) -> Form {
        // Two threadgroups, or one of wide heads, fill a processor's memory.
        let stages = if dim <= 64 { 6 } else { 3 };
        Form { dim, tiles: heads.div_ceil(8), stages, parts: 1 }
    }

    /// Bytes that the stages take, and at the end the sums of all simdgroups.
    pub(super) fn threadgroup_memory(&self) -> u32 {
        let tile = KEYS * self.dim.next_multiple_of(64) * 2;
        let sums = self.tiles * 8 * self.dim * 4;
        SIMDGROUPS * (self.stages * 2 * tile).max(sums)
    }

    pub(in crate::ops) fn defines(&self) -> String {
        let Form { dim, tiles, stages, .. } = self;
        format!("\n#define DIM {dim}\n#define TILES {tiles}\n#define STAGES {stages}")
    }
}

pub(in crate::ops) static SOURCE: KernelSource =
    KernelSource { name: "attention/decode.cu", params: &[Params::DECLARATION], body: include_str!("decode.cu") };
