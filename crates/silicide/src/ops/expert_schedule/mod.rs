//! Which rows each expert takes: the choices of all tokens, grouped by expert on the device.

mod cpu;
#[cfg(test)]
mod tests;

use crate::device::cpu::Entry;
use crate::device::{Gpu, Launch, Stream};
use crate::kernels::{KernelParams, KernelSource, kernel_params};
use crate::ops::check::{check, size};
use crate::{DType, DeviceKind, Result, Tensor};

/// The experts of some tokens, made ready for [`expert_matmul`](crate::ops::expert_matmul) by [`expert_schedule`]; one
/// serves all products of a layer.
#[derive(Clone, Debug)]
pub struct ExpertSchedule {
    ids: Tensor,
    experts: usize,
    grouped: Option<Grouped>,
}

/// Choices grouped by expert. Choice `slot` of token `token` is pair `token * slots + slot`.
#[derive(Clone, Debug)]
pub(crate) struct Grouped {
    /// Pairs in the order of their experts, of one expert in their own, those of no expert last: u32 `[pairs]`.
    pub(crate) order: Tensor,
    /// Expert, first place in `order`, number of places: u32 `[tiles, 3]`. Some are empty. Of an expert that is none the
    /// number is that of experts.
    pub(crate) tiles: Tensor,
    /// The most places of a tile.
    pub(crate) rows: usize,
}

impl ExpertSchedule {
    /// The ids that it was made from, `[tokens, slots]`.
    pub fn ids(&self) -> &Tensor {
        &self.ids
    }

    /// The number of experts that ids are below.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// The number of tokens.
    pub fn tokens(&self) -> usize {
        self.ids.dim(0)
    }

    /// The number of experts a token.
    pub fn slots(&self) -> usize {
        self.ids.dim(1)
    }

    /// `None` where each choice is a product of its own.
    pub(crate) fn grouped(&self) -> Option<&Grouped> {
        self.grouped.as_ref()
    }
}

/// Groups the choices of tokens by expert: a stable counting sort.
///
/// `ids` is `[tokens, slots]` in u32 or i32, contiguous, as [`router`](crate::ops::router) gives them. Those from
/// `experts` on are of no expert. For one token, and for few on a GPU, nothing is launched.
///
/// # Errors
///
/// [`Error::Argument`](crate::Error::Argument) where shapes or types do not fit.
///
/// ```
/// use silicide::{Device, ops};
/// # fn main() -> silicide::Result<()> {
/// let device = Device::cpu();
/// let stream = &mut device.stream();
/// let ids = device.tensor(&[5u32, 2, 2, 7], [2, 2])?;
/// let schedule = ops::expert_schedule(stream, &ids, 8)?;
/// assert_eq!((schedule.tokens(), schedule.slots(), schedule.experts()), (2, 2, 8));
/// # Ok(())
/// # }
/// ```
pub fn expert_schedule(stream: &mut Stream, ids: &Tensor, experts: usize) -> Result<ExpertSchedule> {
    let pairs = ids.elements();
    let nvidia = stream.device().takes_nvidia_kernels();
    let rows = match stream.device().kind() {
        // The CPU has no use for less than all of an expert's rows.
        DeviceKind::Cpu if ids.shape().first() == Some(&1) => None,
        DeviceKind::Cpu => Some(pairs + 1),
        // Tensor cores take larger tiles, and find the few pairs of an expert by themselves.
        _ if nvidia && pairs <= 32.max(experts / 2) => None,
        _ if nvidia => {
            let tiles = [8, 16, 32, 64].into_iter().zip([6, 12, 24, 48]);
            let fits = tiles.map(|(rows, most)| (rows, most * experts)).find(|&(_, most)| pairs < most);
            Some(fits.map_or(128, |(rows, _)| rows))
        }
        _ if pairs <= 32 => None,
        _ if pairs < 12 * experts => Some(FEW),
        _ => Some(MANY),
    };
    schedule(stream, ids, experts, rows)
}

/// [`expert_schedule`] in tiles of at most `rows` rows, or none.
pub(super) fn schedule(
    stream: &mut Stream,
    ids: &Tensor,
    experts: usize,
    rows: Option<usize>,
) -> Result<ExpertSchedule> {
    check(OP, matches!(ids.dtype(), DType::U32 | DType::I32) && ids.rank() == 2 && ids.is_contiguous(), || {
        format!("ids: got {ids:?}, wanted u32 or i32 [tokens, slots], contiguous")
    })?;
    let pairs = ids.elements();
    let schedule = |grouped| ExpertSchedule { ids: ids.clone(), experts, grouped };
    let Some(rows) = rows.filter(|_| pairs > 0) else { return Ok(schedule(None)) };
    let tiles = pairs / rows + experts + 1;
    let params = Params {
        pairs: size(OP, "ids", pairs)?,
        experts: size(OP, "experts", experts)?,
        rows: size(OP, "rows", rows)?,
        tiles: size(OP, "tiles", 3 * tiles)? / 3,
    };
    let (order, tiles) = (stream.empty(DType::U32, [pairs])?, stream.empty(DType::U32, [tiles, 3])?);
    let launch = Launch::new(OP, &params).read(ids).write(&order).write(&tiles);
    stream.launch(launch, cpu::run as Entry, || Gpu {
        source: &SOURCE,
        defines: String::new(),
        entry: OP.into(),
        threadgroups: [params.experts + 1, 1, 1],
        threads: [32 * SIMDGROUPS, 1, 1],
    })?;
    Ok(schedule(Some(Grouped { order, tiles, rows })))
}

/// Rows of a tile where experts have few, and where they have many.
pub(super) const FEW: usize = 4;
pub(super) const MANY: usize = 32;

/// A threadgroup, which shares the pairs.
const SIMDGROUPS: u32 = 8;

const OP: &str = "expert_schedule";

kernel_params! {
    struct Params {
        pairs: u32,
        experts: u32,
        /// The most rows of a tile.
        rows: u32,
        tiles: u32,
    }
}

pub(super) static SOURCE: KernelSource =
    KernelSource { name: "expert_schedule", params: &[Params::DECLARATION], body: include_str!("kernel.metal") };
