//! The formats in which weights come quantised, and what each one's bytes look like.

mod dequant;

#[cfg(test)]
mod tests;

use std::fmt;

pub(crate) use dequant::CHUNK;
pub use dequant::{Group, QuantView, Values};

/// How the rows of a quantised weight are stored.
///
/// MLX formats keep the codes apart from their scales: `codes` is a little-endian bit stream a row, `scales` (and for
/// affine `biases`) hold one value a group. GGUF formats are blocks that carry their own scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QuantFormat {
    /// MLX affine: `w = scale * q + bias`, `q` an unsigned code of 2, 3, 4, 5, 6 or 8 bits; scales and biases in f16, bf16 or f32.
    Affine {
        /// Bits a code.
        bits: u8,
        /// Codes that share a scale and a bias: 32, 64 or 128.
        group_size: u16,
    },
    /// MLX `mxfp4`: e2m1 codes, groups of 32, e8m0 scales.
    Mxfp4,
    /// MLX `mxfp8`: e4m3 codes, groups of 32, e8m0 scales.
    Mxfp8,
    /// MLX `nvfp4`: e2m1 codes, groups of 16, e4m3 scales.
    Nvfp4,
    /// A block format of GGUF.
    Ggml(GgmlFormat),
}

macro_rules! ggml_formats {
    ($($(#[$doc:meta])* $name:ident = $id:literal: $block:literal elements in $bytes:literal bytes),* $(,)?) => {
        /// A quantised block format of GGUF, named as ggml names it.
        #[allow(non_camel_case_types)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum GgmlFormat {
            $($(#[$doc])* $name,)*
        }

        impl GgmlFormat {
            /// Every format.
            pub const ALL: &[GgmlFormat] = &[$(GgmlFormat::$name),*];

            /// The format with this number in a GGUF tensor table.
            pub const fn from_id(id: u32) -> Option<GgmlFormat> {
                match id {
                    $($id => Some(GgmlFormat::$name),)*
                    _ => None,
                }
            }

            /// Elements in a block.
            pub const fn block_elements(self) -> usize {
                match self { $(GgmlFormat::$name => $block,)* }
            }

            /// Bytes in a block.
            pub const fn block_bytes(self) -> usize {
                match self { $(GgmlFormat::$name => $bytes,)* }
            }

            /// ggml's name.
            pub const fn name(self) -> &'static str {
                match self { $(GgmlFormat::$name => stringify!($name),)* }
            }
        }
    };
}

ggml_formats! {
    /// 4-bit codes less 8, times an f16 scale.
    Q4_0 = 2: 32 elements in 18 bytes,
    /// 4-bit codes times an f16 scale, plus an f16 minimum.
    Q4_1 = 3: 32 elements in 20 bytes,
    /// 5-bit codes less 16, times an f16 scale.
    Q5_0 = 6: 32 elements in 22 bytes,
    /// 5-bit codes times an f16 scale, plus an f16 minimum.
    Q5_1 = 7: 32 elements in 24 bytes,
    /// Signed bytes times an f16 scale.
    Q8_0 = 8: 32 elements in 34 bytes,
    /// 2-bit codes, 4-bit scales and minima for each 16.
    Q2_K = 10: 256 elements in 84 bytes,
    /// 3-bit codes, 6-bit scales for each 16.
    Q3_K = 11: 256 elements in 110 bytes,
    /// 4-bit codes, 6-bit scales and minima for each 32.
    Q4_K = 12: 256 elements in 144 bytes,
    /// 5-bit codes, 6-bit scales and minima for each 32.
    Q5_K = 13: 256 elements in 176 bytes,
    /// 6-bit codes, 8-bit scales for each 16.
    Q6_K = 14: 256 elements in 210 bytes,
    /// 4-bit indices into a table of 16 values, an f16 scale.
    IQ4_NL = 20: 32 elements in 18 bytes,
    /// As IQ4_NL, with a 6-bit scale for each 32.
    IQ4_XS = 23: 256 elements in 136 bytes,
}

impl QuantFormat {
    /// Elements along a row that share a scale; a row's length is a multiple of it.
    pub const fn group_size(self) -> usize {
        match self {
            QuantFormat::Affine { group_size, .. } => group_size as usize,
            QuantFormat::Mxfp4 | QuantFormat::Mxfp8 => 32,
            QuantFormat::Nvfp4 => 16,
            QuantFormat::Ggml(f) => f.block_elements(),
        }
    }

    /// Bytes of codes in a row of `k` elements; for GGUF formats the whole blocks, scales and all.
    pub const fn row_bytes(self, k: usize) -> usize {
        match self {
            QuantFormat::Affine { bits, .. } => k / 8 * bits as usize + k % 8 * bits as usize / 8,
            QuantFormat::Mxfp4 | QuantFormat::Nvfp4 => k / 2,
            QuantFormat::Mxfp8 => k,
            QuantFormat::Ggml(f) => k / f.block_elements() * f.block_bytes(),
        }
    }
}

impl fmt::Display for QuantFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            QuantFormat::Affine { bits, group_size } => write!(f, "affine {bits}-bit gs{group_size}"),
            QuantFormat::Mxfp4 => f.write_str("mxfp4"),
            QuantFormat::Mxfp8 => f.write_str("mxfp8"),
            QuantFormat::Nvfp4 => f.write_str("nvfp4"),
            QuantFormat::Ggml(g) => f.write_str(g.name()),
        }
    }
}
