//! The chunked form for NVIDIA's tensor cores.

use super::{KernelParams, KernelSource, Params};
use crate::{DType, Device, Tensor};

/// Bytes that the kernel for factors declares, at most, and the other.
const DECLARED: [u32; 2] = [24 << 10, 1 << 10];

/// How `chunked.cu` shares the work out.
pub(in crate::ops) struct Chunked {
    dtype: DType,
    dk: u32,
    /// Of a chunk.
    pub(super) tokens: u32,
}

impl Chunked {
    /// Tokens from which on it is faster than token by token.
    pub(super) const LEAST: usize = 8;
    /// Threads that make the factors of a chunk.
    pub(super) const FACTOR_THREADS: u32 = 128;
    /// Rows of a threadgroup of the others, of which two simdgroups take sixteen.
    pub(super) const ROWS: u32 = 64;
    pub(super) const THREADS: u32 = 256;

    /// None where types, heads or memory are not what it is for.
    pub(super) fn of(device: &Device, tensors: [&Tensor; 4], p: &Params) -> Option<Chunked> {
        let dtype = tensors[0].dtype();
        let fits = device.takes_nvidia_kernels()
            && dtype != DType::F32
            && p.dk.is_multiple_of(16)
            && p.dk <= 128
            && p.dv.is_multiple_of(16)
            && tensors.iter().all(|t| t.vectors_align(8));
        if fits { Chunked::shaped(dtype, p.dk, p.tokens, device.nvidia_threadgroup_memory()) } else { None }
    }

    /// For so many tokens: the fewest chunks, but of few tokens shorter ones are done sooner.
    pub(in crate::ops) fn shaped(dtype: DType, dk: u32, tokens: u32, memory: u32) -> Option<Chunked> {
        let chunks: &[u32] = if tokens > 64 { &[64, 32] } else { &[32] };
        let mut forms = chunks.iter().map(|&tokens| Chunked { dtype, dk, tokens });
        let needed = |form: &Chunked| (form.tiles() + DECLARED[0]).max(form.threadgroup_memory() + DECLARED[1]);
        forms.find(|form| needed(form) <= memory)
    }

    /// Bytes of a chunk's factors.
    pub(super) fn record(&self) -> u32 {
        let blocks = self.tokens / 16;
        blocks * (blocks + 1) * 1024 + 3 * self.tokens * 4
    }

    /// Bytes of a chunk's keys and queries.
    pub(super) fn tiles(&self) -> u32 {
        2 * self.tokens * self.dk.next_multiple_of(64) * 2 + 128
    }

    /// Bytes of two stages of keys, queries, values and factors, and of what simdgroups share.
    pub(super) fn threadgroup_memory(&self) -> u32 {
        let values = self.tokens * Chunked::ROWS * 2;
        let stage = (self.tiles() - 128 + values + self.record()).next_multiple_of(128);
        let pairs = Chunked::ROWS / 16;
        2 * stage + pairs * (self.dk + self.tokens) / 16 * 1024 + 128
    }

    pub(in crate::ops) fn defines(&self) -> String {
        let Chunked { dtype, dk, tokens } = self;
        format!("#define SCALAR {}\n#define DK {dk}\n#define TOKENS {tokens}", dtype.msl())
    }
}

pub(in crate::ops) static SOURCE: KernelSource = KernelSource {
    name: "gated_delta_rule/chunked.cu",
    params: &[Params::DECLARATION],
    body: include_str!("chunked.cu"),
};

#[cfg(test)]
mod tests {
    use super::*;

    /// What processors of compute capability 7.5, 8.6, 8.0 and 9.0 have.
    #[test]
    fn smaller_processors_take_shorter_chunks() {
        for (dk, tokens, wanted) in [(128, 65, [0, 32, 32, 64]), (128, 64, [0, 32, 32, 32]), (64, 65, [32, 32, 64, 64])]
        {
            let chunk =
                |memory: u32| Chunked::shaped(DType::BF16, dk, tokens, memory << 10).map_or(0, |form| form.tokens);
            assert_eq!([64, 99, 163, 227].map(chunk), wanted, "keys of {dk}, {tokens} tokens");
        }
    }
}
