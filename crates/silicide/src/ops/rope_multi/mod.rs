//! Rotary position embedding over several position axes: time, height, width and one more.

#[cfg(test)]
mod tests;

use super::rope::{Pairing, RopeFrequencies, Rotary, RotaryParams};
use crate::device::{Device, Stream};
use crate::kernels::{KernelParams, KernelSource};
use crate::ops::check::{check, size};
use crate::{Error, Result, Tensor};

/// How the pairs of a head are shared out among the position axes. The values are those of ggml's `GGML_ROPE_TYPE_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum RopeMultiMode {
    /// One run of pairs an axis (Qwen2-VL's language model).
    Mrope = 8,
    /// As [`Mrope`](Self::Mrope), but frequencies begin anew in each section, so that each axis has the whole range
    /// (Qwen2-VL's and Qwen3-VL's vision towers). See [`RopeMulti::new`] for the sizes.
    Vision = 24,
    /// Pairs take the first three axes in turn, each as often as its section says (Qwen3-VL, Qwen3.5).
    Imrope = 40,
}

/// The axis of a pair that no rule of [`RopeMultiMode::Imrope`] names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum FallbackAxis {
    /// Axis 0, as in MLX and transformers.
    Temporal = 0,
    /// Axis 3, as in ggml.
    Extra = 3,
}

/// Which position axis turns which pair.
///
/// Let `sector = p mod (s0 + s1 + s2 + s3)` for pair `p`. With contiguous sections (`Mrope`, `Vision`) the axis is the
/// section in which the sector lies. With `Imrope` it is `a = sector mod 3` where `sector < 3 * s[a]`, and the fallback
/// otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RopeSections {
    /// Contiguous or interleaved.
    pub mode: RopeMultiMode,
    /// Pairs of each axis: time, height, width, extra. Where they sum to less than the pairs there are, they repeat.
    pub sections: [u32; 4],
    /// Used by [`RopeMultiMode::Imrope`] alone.
    pub fallback: FallbackAxis,
}

/// A rotary embedding over several position axes, on a device.
pub struct RopeMulti(pub(super) Rotary);

impl RopeMulti {
    /// Brings `frequencies`, shared out by `sections`, to `device`.
    ///
    /// Pair `p` turns by frequency `p`, and there are as many pairs as frequencies. With [`RopeMultiMode::Vision`] it
    /// turns by the frequency that is as far from the first as `p` is from the start of its section, and there are twice
    /// as many pairs as frequencies: for heads of `d` elements of which the first half of the pairs follows the height and
    /// the second the width, `frequencies` are those of `d / 2` dimensions, each section is `d / 4`, and heights and
    /// widths are position axes 0 and 1.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] where all sections are empty, one of `Vision` is longer than the frequencies, or those of
    /// [`Pairing::SectionHalves`] are interleaved or not of one size that divides the pairs.
    pub fn new(
        device: &Device,
        frequencies: &RopeFrequencies,
        sections: RopeSections,
        pairing: Pairing,
    ) -> Result<RopeMulti> {
        let table = sections.table(frequencies.inverse())?;
        let section = if pairing == Pairing::SectionHalves { sections.size(table.len())? } else { 0 };
        Ok(RopeMulti(Rotary::new(device, &table, frequencies.attention_factor(), 4, pairing, section)?))
    }

    /// The rotary embedding of a vision tower, over heads of `head_dim` elements that all turn.
    ///
    /// Half of the pairs follow the first position axis and half the second, each by the frequencies
    /// `theta^(-4i / head_dim)` from `i = 0` on, and `positions` are `[2, tokens]`: in the towers of transformers all
    /// heights, then all widths. Towers of Qwen2-VL to Qwen3.5 take [`Pairing::Halves`], Gemma 4's, whose halves of a head
    /// turn apart, [`Pairing::SectionHalves`]. It is [`RopeMultiMode::Vision`] without positions that nothing reads.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] where `head_dim` is no multiple of 4, or `theta` is not positive.
    ///
    /// ```
    /// use silicide::ops::{self, Pairing, RopeMulti};
    /// use silicide::Device;
    /// # fn main() -> silicide::Result<()> {
    /// let device = Device::cpu();
    /// let stream = &mut device.stream();
    /// let rope = RopeMulti::vision(&device, 4, 10_000.0, Pairing::SectionHalves)?;
    /// let x = device.tensor(&[1.0f32, 0.0, 0.0, 1.0], [1, 1, 4])?;
    /// // The patch of row 2 and column 5.
    /// let positions = device.tensor(&[2u32, 5], [2, 1])?;
    /// let y = ops::rope_multi(stream, &x, &positions, &rope)?.to_vec::<f32>(stream)?;
    /// let want = [2f32.cos(), 2f32.sin(), -5f32.sin(), 5f32.cos()];
    /// assert!(y.iter().zip(want).all(|(y, w)| (y - w).abs() < 1e-6));
    /// # Ok(())
    /// # }
    /// ```
    pub fn vision(device: &Device, head_dim: usize, theta: f64, pairing: Pairing) -> Result<RopeMulti> {
        check(OP, head_dim > 0 && head_dim.is_multiple_of(4), || {
            format!("head_dim: got {head_dim}, wanted a multiple of 4")
        })?;
        let section = size(OP, "head_dim", head_dim / 4)?;
        let sections = [section, section, 0, 0];
        let sections = RopeSections { mode: RopeMultiMode::Vision, sections, fallback: FallbackAxis::Temporal };
        let table = sections.table(RopeFrequencies::new(head_dim / 2, theta)?.inverse())?;
        Ok(RopeMulti(Rotary::new(device, &table, 1.0, 2, pairing, head_dim / 4)?))
    }
}

impl RopeSections {
    /// The frequency and the axis of each pair.
    fn table(&self, inverse: &[f64]) -> Result<Vec<(f64, u32)>> {
        let sections = self.sections.map(u64::from);
        let total: u64 = sections.iter().sum();
        check(OP, total > 0, || "sections: got [0, 0, 0, 0], wanted at least one pair for an axis".into())?;
        let pairs = if self.mode == RopeMultiMode::Vision { 2 * inverse.len() } else { inverse.len() };
        let pair = |p: usize| {
            let sector = p as u64 % total;
            let (mut axis, mut start) = (0, 0);
            while sector >= start + sections[axis] {
                start += sections[axis];
                axis += 1;
            }
            let index = match self.mode {
                RopeMultiMode::Mrope => p,
                RopeMultiMode::Vision => (sector - start) as usize,
                RopeMultiMode::Imrope => {
                    axis = (sector % 3) as usize;
                    if sector >= 3 * sections[axis] {
                        axis = self.fallback as usize;
                    }
                    p
                }
            };
            let frequency = inverse.get(index).ok_or_else(|| {
                let message =
                    format!("section {axis}: got {}, wanted at most the {} frequencies", sections[axis], inverse.len());
                Error::argument(OP, message)
            })?;
            Ok((*frequency, axis as u32))
        };
        (0..pairs).map(pair).collect()
    }

    /// Pairs of each section, where they are contiguous and of one size.
    fn size(&self, pairs: usize) -> Result<usize> {
        let sizes: Vec<u32> = self.sections.into_iter().filter(|&s| s > 0).collect();
        let one = self.mode != RopeMultiMode::Imrope && sizes.iter().all(|s| *s == sizes[0]);
        check(OP, one && pairs.is_multiple_of(sizes[0] as usize), || {
            let (mode, sections) = (self.mode, self.sections);
            format!(
                "sections: got {mode:?} {sections:?}, wanted contiguous ones of one size that divides {pairs} pairs"
            )
        })?;
        Ok(sizes[0] as usize)
    }
}

/// [`rope`](super::rope) with the position of each pair's own axis.
///
/// `x` is as for [`rope`](super::rope): `[tokens, heads, head_dim]` in f32, f16 or bf16. `positions` is axis-major,
/// `[4, tokens]` or `[4 * tokens]` in i32 or u32: all times, then heights, widths and extras; for text all four are the
/// token's position. Those of [`RopeMulti::vision`] are `[2, tokens]`. The result has `x`'s shape and type. Mathematics: Wang et al., "Qwen2-VL", 2024.
///
/// # Errors
///
/// [`Error::Argument`] where shapes or types do not fit.
///
/// The embedding of Qwen3.5, whose heads have 256 elements of which 64 turn:
///
/// ```
/// use silicide::ops::{self, FallbackAxis, Pairing, RopeFrequencies, RopeMulti, RopeMultiMode, RopeSections};
/// use silicide::{DType, Device};
/// # fn main() -> silicide::Result<()> {
/// let device = Device::cpu();
/// let stream = &mut device.stream();
/// let sections =
///     RopeSections { mode: RopeMultiMode::Imrope, sections: [11, 11, 10, 0], fallback: FallbackAxis::Temporal };
/// let rope = RopeMulti::new(&device, &RopeFrequencies::new(64, 1e7)?, sections, Pairing::Halves)?;
/// let x = device.tensor(&[1.0f32; 2 * 256], [2, 1, 256])?;
/// // Two patches of an image: one time, two heights, one width.
/// let positions = device.tensor(&[5i32, 5, 0, 1, 0, 0, 0, 0], [4, 2])?;
/// let y = ops::rope_multi(stream, &x, &positions, &rope)?.to_vec::<f32>(stream)?;
/// // Pair 0, elements 0 and 32, follows the time; pair 1 the height.
/// assert!((y[0] - (5f32.cos() - 5f32.sin())).abs() < 1e-5);
/// assert_eq!((y[1], y[64]), (1.0, 1.0));
/// assert!(y[256 + 1] != 1.0);
/// # Ok(())
/// # }
/// ```
pub fn rope_multi(stream: &mut Stream, x: &Tensor, positions: &Tensor, rope: &RopeMulti) -> Result<Tensor> {
    let out = stream.empty(x.dtype(), *x.shape())?;
    rope_multi_into(stream, x, positions, rope, &out)?;
    Ok(out)
}

/// [`rope_multi`] into `out`, which may be `x` itself.
pub fn rope_multi_into(
    stream: &mut Stream,
    x: &Tensor,
    positions: &Tensor,
    rope: &RopeMulti,
    out: &Tensor,
) -> Result<()> {
    rope.0.launch(OP, &SOURCE, stream, positions, (x, out), None)
}

/// [`rope_multi`] of queries and keys in one launch, each in place, as [`rope_in_place`](super::rope_in_place).
pub fn rope_multi_in_place(
    stream: &mut Stream,
    q: &Tensor,
    k: &Tensor,
    positions: &Tensor,
    rope: &RopeMulti,
) -> Result<()> {
    rope.0.launch(OP, &SOURCE, stream, positions, (q, q), Some((k, k)))
}

const OP: &str = "rope_multi";

pub(super) static SOURCE: KernelSource =
    KernelSource { name: "rope_multi", params: &[RotaryParams::DECLARATION], body: include_str!("kernel.metal") };
