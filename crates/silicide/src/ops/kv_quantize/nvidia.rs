//! The form for NVIDIA's tensor cores, of many rows: `many.cu`.

use super::{KernelSource, Params, QUANTIZE, codebook};
use crate::device::Gpu;
use crate::kernels::KernelParams;
use crate::ops::attention::CacheLayout;
use crate::{DType, Device};

/// How `many.cu` shares the work out.
pub(super) struct Many {
    dim: u32,
    bits: u32,
    norms: u32,
    simdgroups: u32,
    threadgroups: u32,
    /// Bytes of threadgroup memory for words that are looked up, of which each lane has its own, and for rows on their way.
    pub(super) memory: u32,
}

/// Rows of a head at a time.
const ROWS: u32 = 8;
/// Rows of a head that are worth a table for each lane, where there is work beside looking things up.
const FEWEST: u32 = 32;
/// Bytes of threadgroup memory that are left to what the kernels declare.
const DECLARED: u32 = 2 << 10;

impl Many {
    /// For `rows` of each head. None where they are few, do not lie so that packets are sixteen bytes of them, or are not of 16 bits.
    pub(super) fn of(device: &Device, op: &str, p: &Params, rows: u32, dtype: DType, aligned: bool) -> Option<Many> {
        let whole = aligned && dtype != DType::F32 && (64..=256).contains(&p.dim);
        if !(device.takes_nvidia_kernels() && whole && rows >= FEWEST) {
            return None;
        }
        let processors = device.processors().unwrap_or(1);
        let tiles = rows.div_ceil(ROWS) * p.heads;
        // Few tiles are spread over all processors; of many each has as many as its registers hold.
        let few = tiles <= 8 * processors;
        // Of which codes are read back as fast without a table.
        if few && op != QUANTIZE {
            return None;
        }
        let simdgroups = if few { 4 } else { Many::most(p.dim) };
        let most = if few { 2 * processors } else { processors };
        let threadgroups = tiles.div_ceil(simdgroups).min(most).max(p.heads.div_ceil(simdgroups));
        let memory = match op {
            QUANTIZE => 4 * 32 * codebook::places_of(p.bits) + simdgroups * ROWS * p.dim * 2,
            _ => (4 * 32) << p.bits,
        };
        let fits = memory + DECLARED <= device.nvidia_threadgroup_memory();
        fits.then_some(Many { dim: p.dim, bits: p.bits, norms: p.norms, simdgroups, threadgroups, memory })
    }

    fn most(dim: u32) -> u32 {
        if dim == 256 { 16 } else { 32 }
    }

    pub(super) fn gpu(&self, op: &str, dtype: DType, layout: CacheLayout) -> Gpu {
        Gpu {
            source: &MANY,
            defines: defines(
                if op == QUANTIZE { [dtype; 2] } else { [DType::F16, dtype] },
                self.dim,
                self.bits,
                self.norms,
                self.simdgroups,
                layout,
            ),
            entry: format!("{op}_many"),
            threadgroups: [self.threadgroups, 1, 1],
            threads: [32 * self.simdgroups, 1, 1],
        }
    }
}

/// For the types of factors and of rows that were quantised.
fn defines([factor, out]: [DType; 2], dim: u32, bits: u32, norms: u32, simdgroups: u32, layout: CacheLayout) -> String {
    format!(
        "{}#define SCALAR {}\n#define OUT {}\n#define DIM {dim}\n#define BITS {bits}\n#define NORMS {norms}\n#define SIMDGROUPS {simdgroups}",
        layout.define(),
        factor.msl(),
        out.msl(),
    )
}

/// A few of the many forms, in which each number is at least once.
#[cfg(test)]
pub(in crate::ops) fn some_defines() -> std::collections::BTreeSet<String> {
    let forms = [(64, 4, 1), (64, 5, 2), (128, 8, 1), (128, 6, 2), (256, 8, 2), (256, 4, 1)];
    let forms = forms.into_iter().zip(DType::FLOATS[1..].iter().cycle()).zip(0..);
    forms
        .map(|(((dim, bits, norms), &dtype), i)| {
            let layout = if i % 3 == 0 { CacheLayout::Ring } else { CacheLayout::Rows };
            let out = DType::FLOATS[1 + i % 2];
            defines([dtype, out], dim, bits, norms, if i % 2 == 0 { Many::most(dim) } else { 4 }, layout)
        })
        .collect()
}

pub(in crate::ops) static MANY: KernelSource =
    KernelSource { name: "kv_quantize/many.cu", params: &[Params::DECLARATION], body: include_str!("many.cu") };
