//! The form for NVIDIA's tensor cores: `decode.cu`.

use super::{Code, KernelParams, KernelSource, Params, Side, defines_of};
use crate::ops::attention::CacheLayout;
use crate::{DType, Device};

/// How `decode.cu` shares the work out.
pub(in crate::ops) struct Decode {
    dim: u32,
    codes: [Code; 2],
    rows: u32,
    /// Threadgroups among which the heads that share keys are.
    pub(super) tiles: u32,
    simdgroups: u32,
    /// That the keys of a query are computed in.
    pub(super) parts: u32,
}

/// Keys that a simdgroup takes at a time.
const KEYS: u32 = 16;

impl Decode {
    /// None where rows do not lie so that copies take sixteen bytes of them, or have scales that are too near together, or where the GPU
    /// has too little threadgroup memory.
    pub(super) fn of(device: &Device, p: &Params, codes: [Code; 2], aligned: bool) -> Option<Decode> {
        let fits = |code: &Code| code.group >= 64 && (p.dim * code.bits).is_multiple_of(128);
        if !(device.takes_nvidia_kernels() && matches!(p.dim, 64 | 128 | 256) && aligned && codes.iter().all(fits)) {
            return None;
        }
        // A threadgroup for each processor of a large GPU; the number of queries has no say, so that one gives what a few give.
        const ENOUGH: u32 = 128;
        let memory = device.nvidia_threadgroup_memory();
        let form = Decode::shaped(p.dim, p.q_heads / p.kv_heads, codes, memory);
        if form.threadgroup_memory() + DECLARED > memory {
            return None;
        }
        let keys = if p.window == 0 { p.keys } else { p.window.min(p.keys) };
        let parts = (ENOUGH / (p.kv_heads * form.tiles)).min(keys.div_ceil(form.simdgroups * KEYS));
        Some(Decode { parts: parts.clamp(1, super::MOST_PARTS), ..form })
    }

    pub(in crate::ops) fn shaped(dim: u32, sharing: u32, codes: [Code; 2], memory: u32) -> Decode {
        let tiles = sharing.div_ceil(8);
        let rows = sharing.div_ceil(tiles);
        // As many as a processor has registers for, and memory.
        let most = match dim {
            256 => 8,
            _ if codes.iter().any(|code| code.rotated) => 12,
            _ => 16,
        };
        let form = Decode { dim, codes, rows, tiles, simdgroups: most, parts: 1 };
        let fits = form.threadgroup_memory() + DECLARED <= memory;
        Decode { simdgroups: if fits { most } else { 8 }, ..form }
    }

    /// Bytes that a simdgroup's keys and values take.
    fn stage(&self) -> u32 {
        self.codes.iter().map(|code| KEYS * self.dim * code.bits / 8).sum()
    }

    /// Bytes of the levels: of keys and of values in turn, once for each lane.
    fn tables(&self) -> u32 {
        let table = |code: &Code| if code.rotated { (2 * 4 * 32) << code.bits } else { 0 };
        self.codes.iter().map(table).max().unwrap_or(0)
    }

    /// Bytes that two stages and the levels take, and at the end the sums of all simdgroups.
    pub(super) fn threadgroup_memory(&self) -> u32 {
        let sums = 8 * (self.dim + 4) * 4;
        (self.simdgroups * 2 * self.stage() + self.tables()).max(self.simdgroups * sums) + 128
    }

    pub(super) fn threads(&self) -> u32 {
        32 * self.simdgroups
    }

    pub(in crate::ops) fn defines(&self, q: DType, cache: CacheLayout) -> String {
        let Decode { dim, codes, rows, simdgroups, .. } = self;
        format!(
            "{}#define QUERY {}\n#define SCALAR half\n#define DIM {dim}\n#define ROWS {rows}\n#define SIMDGROUPS {simdgroups}\n\
             #define K_GROUP {}\n#define V_GROUP {}",
            defines_of(*codes, cache),
            q.msl(),
            codes[0].group,
            codes[1].group,
        )
    }
}

/// Bytes that are left to what the kernel declares.
const DECLARED: u32 = 11 << 10;

pub(in crate::ops) static DECODE: KernelSource = KernelSource {
    name: "quantized_attention/decode.cu",
    params: &[Side::DECLARATION, Params::DECLARATION],
    body: include_str!("decode.cu"),
};
