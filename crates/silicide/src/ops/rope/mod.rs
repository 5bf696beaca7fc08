//! Rotary position embedding, every convention by explicit parameters.

pub(super) mod cpu;
mod frequencies;
#[cfg(test)]
mod tests;

use std::f64::consts::TAU;

pub use self::frequencies::{Llama3Scaling, RopeFrequencies, YarnScaling};
use crate::device::{Device, Gpu, Launch, Stream};
use crate::kernels::{KernelParams, KernelSource, kernel_params};
use crate::ops::check::{check, float_entry, size};
use crate::ops::rows::{block, packets_align, whole};
use crate::{DType, Result, Tensor};

/// Which two elements of a head make pair `p` and turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pairing {
    /// `2p` and `2p + 1`: GPT-J's form, `traditional` in MLX.
    Interleaved,
    /// `p` and `p + rope_dim / 2`: GPT-NeoX's form, which MLX and transformers use for nearly all models.
    Halves,
    /// `p` and `p + head_dim / 2`. Differs from [`Halves`](Self::Halves) where only a part of the head turns.
    HeadHalves,
    /// [`Halves`](Self::Halves) within each section's own part of the head, one part after the other: pair `i` of a section
    /// of `n` pairs that starts at pair `s` is elements `2s + i` and `2s + i + n` (Gemma 4's vision tower). With one position
    /// axis the whole is one section.
    SectionHalves,
}

/// A rotary embedding on a device: the frequencies and what they turn.
pub struct Rope(pub(super) Rotary);

impl Rope {
    /// Brings `frequencies` to `device`. Their number decides how much of a head turns: `rope_dim` is twice that.
    pub fn new(device: &Device, frequencies: &RopeFrequencies, pairing: Pairing) -> Result<Rope> {
        let table: Vec<_> = frequencies.inverse().iter().map(|&f| (f, 0)).collect();
        Ok(Rope(Rotary::new(device, &table, frequencies.attention_factor(), 1, pairing, table.len())?))
    }
}

/// Turns the pairs of every head of `x` by position times frequency.
///
/// `x` is `[tokens, heads, head_dim]` in f32, f16 or bf16 with a contiguous last axis and any other strides, such as the
/// query and key heads inside a fused projection; `positions` is `[tokens]` in i32 or u32, read when the launch runs, so
/// that a recorded plan serves every step. Pair `(a, b)` becomes `(a cos t - b sin t, b cos t + a sin t)`, computed in
/// f32; elements past `rope_dim` stay as they are. Angles are reduced exactly at any position. The result has `x`'s
/// shape and type. Mathematics: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.
///
/// # Errors
///
/// [`Error::Argument`](crate::Error::Argument) where shapes or types do not fit.
///
/// ```
/// use silicide::ops::{self, Pairing, Rope, RopeFrequencies};
/// use silicide::Device;
/// # fn main() -> silicide::Result<()> {
/// let device = Device::cpu();
/// let stream = &mut device.stream();
/// let rope = Rope::new(&device, &RopeFrequencies::new(4, 10_000.0)?, Pairing::Halves)?;
/// let x = device.tensor(&[1.0f32, 1.0, 0.0, 0.0], [1, 1, 4])?;
/// let positions = device.tensor(&[3u32], [1])?;
/// let y = ops::rope(stream, &x, &positions, &rope)?.to_vec::<f32>(stream)?;
/// // Pair 0 turns by 3 radians, pair 1 by 0.03.
/// let want = [3f32.cos(), 0.03f32.cos(), 3f32.sin(), 0.03f32.sin()];
/// assert!(y.iter().zip(want).all(|(y, w)| (y - w).abs() < 1e-6));
/// # Ok(())
/// # }
/// ```
pub fn rope(stream: &mut Stream, x: &Tensor, positions: &Tensor, rope: &Rope) -> Result<Tensor> {
    let out = stream.empty(x.dtype(), *x.shape())?;
    rope_into(stream, x, positions, rope, &out)?;
    Ok(out)
}

/// [`rope`] into `out`, which may be `x` itself.
pub fn rope_into(stream: &mut Stream, x: &Tensor, positions: &Tensor, rope: &Rope, out: &Tensor) -> Result<()> {
    rope.0.launch(OP, &SOURCE, stream, positions, (x, out), None)
}

/// [`rope`] of queries and keys in one launch, each in place.
///
/// `q` and `k` have the same tokens, head dimension and type. Queries and keys that lie in one tensor are better
/// given to [`rope_into`] as one view of the heads of both.
pub fn rope_in_place(stream: &mut Stream, q: &Tensor, k: &Tensor, positions: &Tensor, rope: &Rope) -> Result<()> {
    rope.0.launch(OP, &SOURCE, stream, positions, (q, q), Some((k, k)))
}

/// What [`Rope`] and [`RopeMulti`](super::RopeMulti) share: a table with the frequency and the position axis of each pair.
pub(super) struct Rotary {
    /// `[pairs]` in 2^-64 turns from one position to the next, so that the product with a position wraps at whole turns.
    frequencies: Tensor,
    /// `[pairs]`, each below `position_axes`.
    axes: Tensor,
    position_axes: u32,
    /// Multiplies cosine and sine.
    scale: f32,
    pairing: Pairing,
    /// Pairs of a section, for [`Pairing::SectionHalves`].
    section: usize,
}

impl Rotary {
    pub(super) fn new(
        device: &Device,
        table: &[(f64, u32)],
        scale: f64,
        position_axes: u32,
        pairing: Pairing,
        section: usize,
    ) -> Result<Rotary> {
        // Turns in two parts, since the table has more bits than f64; whole turns drop out of the first.
        let turns = |radians: f64| {
            let turns = radians / TAU;
            let rest = radians.mul_add(INVERSE_TAU, -turns) + radians * INVERSE_TAU_REST;
            let fixed = |turns: f64| (turns * 2f64.powi(64)).round() as i64;
            fixed(turns - turns.round()).wrapping_add(fixed(rest))
        };
        let frequencies: Vec<i64> = table.iter().map(|&(f, _)| turns(f)).collect();
        let axes: Vec<u32> = table.iter().map(|&(_, axis)| axis).collect();
        Ok(Rotary {
            frequencies: device.tensor(&frequencies, [table.len()])?,
            axes: device.tensor(&axes, [table.len()])?,
            position_axes,
            scale: scale as f32,
            pairing,
            section,
        })
    }

    /// In 2^-64 turns, by pair.
    pub(super) fn frequencies(&self) -> &Tensor {
        &self.frequencies
    }

    /// The position axis of each pair.
    pub(super) fn axes(&self) -> &Tensor {
        &self.axes
    }

    /// Turns `first.0` into `first.1` and, in the same launch, `second.0` into `second.1`.
    pub(super) fn launch(
        &self,
        op: &'static str,
        source: &'static KernelSource,
        stream: &mut Stream,
        positions: &Tensor,
        first: (&Tensor, &Tensor),
        second: Option<(&Tensor, &Tensor)>,
    ) -> Result<()> {
        let params = self.params(op, positions, first, second)?;
        let (x, out) = first;
        let turned = x.elements() + second.map_or(0, |(k, _)| k.elements());
        if turned == 0 {
            return Ok(());
        }
        let RotaryParams { head_dim, pairs, heads, copies, .. } = params;
        let launch = Launch::new(op, &params)
            .read(x)
            .write_in_place(out)
            .read_optional(second.map(|(x, _)| x))
            .write_in_place_optional(second.map(|(_, out)| out))
            .read(positions)
            .read(&self.frequencies)
            .read(&self.axes)
            .flops(3 * turned / head_dim as usize * 2 * pairs as usize);
        let dtype = x.dtype();
        stream.launch(launch, float_entry!(dtype, T => cpu::run::<T>), || {
            let aligned = params.packs(&[Some(x), Some(out), second.map(|s| s.0), second.map(|s| s.1)]);
            let pairs = if copies != 0 { head_dim / 2 } else { pairs };
            let columns = if aligned { pairs / PAIRS } else { pairs };
            let heads = (heads[0] + heads[1]).div_ceil(HEADS);
            let threads = block(columns, heads, params.tokens);
            Gpu {
                source,
                entry: format!("{}_{dtype}", source.name),
                defines: whole(aligned),
                threadgroups: [
                    params.tokens.div_ceil(threads[2]),
                    heads.div_ceil(threads[1]),
                    columns.div_ceil(threads[0]),
                ],
                threads,
            }
        })
    }

    /// Checks what is to be turned, and says how.
    pub(super) fn params(
        &self,
        op: &'static str,
        positions: &Tensor,
        first: (&Tensor, &Tensor),
        second: Option<(&Tensor, &Tensor)>,
    ) -> Result<RotaryParams> {
        let (x, out) = first;
        let pairs = self.frequencies.elements();
        let (mut heads, mut x_strides, mut out_strides) = ([0; 2], [0; 4], [0; 4]);
        for (i, (x, out)) in [Some(first), second].into_iter().flatten().enumerate() {
            let fits = x.rank() == 3 && x.dtype().is_float();
            check(op, fits, || format!("x: got {x:?}, wanted [tokens, heads, head_dim] of f32, f16 or bf16"))?;
            let same = out.shape() == x.shape() && out.dtype() == x.dtype();
            check(op, same, || format!("out: got {out:?}, wanted {x:?}"))?;
            for (name, t, strides) in [("x", x, &mut x_strides), ("out", out, &mut out_strides)] {
                check(op, t.dim(2) <= 1 || t.strides()[2] == 1, || {
                    format!("{name}: got {t:?} with strides {}, wanted a contiguous last axis", t.strides())
                })?;
                strides[2 * i] = size(op, name, t.strides()[0])?;
                strides[2 * i + 1] = size(op, name, t.strides()[1])?;
            }
            // Rows are turned in any order, so an output may lie over its own input only, element by element.
            let in_place = x.offset() == out.offset() && x.strides() == out.strides();
            check(op, in_place || !overlap(x, out), || {
                "out: got memory that overlaps x, wanted x itself or memory of its own".into()
            })?;
            check(op, !overlap(positions, out), || "out: got memory that overlaps the positions".into())?;
            heads[i] = size(op, "heads", x.dim(1))?;
        }
        let (tokens, head_dim) = (x.dim(0), x.dim(2));
        if let Some((k, _)) = second {
            check(op, !overlap(x, k), || {
                "q and k: got overlapping memory, wanted two tensors; turn one view of the heads of both instead".into()
            })?;
            check(op, k.dim(0) == tokens && k.dim(2) == head_dim && k.dtype() == x.dtype(), || {
                format!("k: got {k:?}, wanted {}[{tokens}, heads, {head_dim}] as q", x.dtype())
            })?;
        }
        check(op, head_dim.is_multiple_of(2) && 2 * pairs <= head_dim, || {
            format!("head_dim: got {head_dim}, wanted an even number that holds the {} that turn", 2 * pairs)
        })?;
        let axes = self.position_axes as usize;
        let fits = positions.elements() == axes * tokens
            && (positions.rank() == 1 || axes > 1 && positions.shape()[..] == [axes, tokens])
            && positions.is_contiguous();
        check(op, fits && matches!(positions.dtype(), DType::I32 | DType::U32), || {
            let wanted = if axes == 1 { format!("[{tokens}]") } else { format!("[{axes}, {tokens}]") };
            format!("positions: got {positions:?}, wanted i32 or u32 {wanted}, contiguous")
        })?;
        size(op, "positions", positions.elements())?;
        let head_dim = size(op, "head_dim", head_dim)?;
        let pairs = pairs as u32;
        let section = if self.pairing == Pairing::SectionHalves { self.section as u32 } else { pairs };
        let copies = out.offset() != x.offset() || !out.buffer().is_same(x.buffer());
        Ok(RotaryParams {
            x_strides,
            out_strides,
            heads,
            tokens: size(op, "tokens", tokens)?,
            head_dim,
            pairs,
            axes: self.position_axes,
            step: if self.pairing == Pairing::Interleaved { 2 } else { 1 },
            distance: match self.pairing {
                Pairing::Interleaved => 1,
                Pairing::Halves | Pairing::SectionHalves => section,
                Pairing::HeadHalves => head_dim / 2,
            },
            section,
            rest: if self.pairing == Pairing::HeadHalves { pairs } else { 2 * pairs },
            copies: copies.into(),
            signed_positions: (positions.dtype() == DType::I32).into(),
            scale: self.scale,
        })
    }
}

/// `1 / (2 pi)` to twice the precision of f64.
const INVERSE_TAU: f64 = 1.0 / TAU;
const INVERSE_TAU_REST: f64 = -9.839338337591243e-18;

/// Whether two views may touch the same bytes.
fn overlap(a: &Tensor, b: &Tensor) -> bool {
    let (r, s) = (a.byte_range(), b.byte_range());
    a.buffer().is_same(b.buffer()) && r.start < s.end && s.start < r.end
}

/// Heads that share a thread's angles: enough that making them costs little, few enough that one token fills a GPU.
const HEADS: u32 = 4;

/// Pairs that kernels handle together where they can.
const PAIRS: u32 = 4;

const OP: &str = "rope";

kernel_params! {
    /// Strides are elements by token and by head, those of the second tensor after those of the first.
    pub(super) struct RotaryParams {
        x_strides: [u32; 4],
        out_strides: [u32; 4],
        heads: [u32; 2],
        tokens: u32,
        head_dim: u32,
        pairs: u32,
        axes: u32,
        /// Elements between the first elements of neighbouring pairs, and between the two of a pair.
        step: u32,
        distance: u32,
        /// Pairs whose elements lie together; those of the next pairs come after both of all of these.
        section: u32,
        /// Elements `rest..` and `head_dim / 2 + pairs..`, `head_dim / 2 - pairs` of each, do not turn.
        rest: u32,
        /// Whether they must be copied.
        copies: u32,
        signed_positions: u32,
        scale: f32,
    }
}

impl RotaryParams {
    /// Whether kernels may handle PAIRS pairs together: their first elements are neighbours, and their second, aligned in
    /// every tensor.
    pub(super) fn packs(&self, tensors: &[Option<&Tensor>]) -> bool {
        let starts = [self.pairs, self.section, self.distance, self.rest, self.head_dim / 2];
        self.step == 1
            && starts.iter().all(|start| start.is_multiple_of(PAIRS))
            && packets_align(self.head_dim as usize, PAIRS as usize, tensors)
    }

    /// Whether each of a team of lanes may hold one packet of a head, and what that turns with be a packet of another lane,
    /// as far away as a power of two; and whether there are lanes for as many heads.
    pub(super) fn is_in_lanes(&self, packet: u32, width: u32, heads: u32) -> bool {
        self.step == 1
            && self.section == self.pairs
            && self.head_dim == packet * width
            && self.distance.is_power_of_two()
            && self.distance >= packet
            && self.pairs.is_multiple_of(packet)
            && width >= heads
    }
}

pub(super) static SOURCE: KernelSource =
    KernelSource { name: "rope", params: &[RotaryParams::DECLARATION], body: include_str!("kernel.metal") };
