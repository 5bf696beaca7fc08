//! The launches of a GPU: what each part of a row has, and the draw.

use super::{OP, Params, SOURCE};
use crate::device::{Gpu, Launch, Stream};
use crate::ops::check::size;
use crate::ops::parts::{self, PART};
use crate::{DType, Result, Tensor};

/// Words of the bins that a row's elements are counted and weighed in; `bin_words` of the kernel.
const BIN_WORDS: usize = 3 * 1024;

pub(super) fn run(stream: &mut Stream, mut p: Params, logits: &Tensor, state: &Tensor, out: &Tensor) -> Result<()> {
    let (rows, len) = (p.walk.row_count() as usize, p.walk.row_len());
    let parts = len.div_ceil(PART);
    // The one best needs no weights.
    let (weighs, has_cut) = (p.top_k > 1, p.top_k > 1 && (p.has_top_p | p.has_top_k) != 0);
    (p.parts, p.has_cut) = (parts as u32, has_cut.into());
    let threadgroups = size(OP, "threadgroups", rows * parts)?;
    let threads = parts::threads(len);
    let mut temporary = |wanted: bool, dtype, shape: [usize; 2]| {
        if wanted { stream.empty(dtype, shape).map(Some) } else { Ok(None) }
    };
    // I64 stands for 64 bits.
    let bests = temporary(true, DType::I64, [rows, parts])?.expect("wanted");
    let sums = temporary(weighs, DType::I64, [rows, parts])?;
    let bins = temporary(has_cut, DType::U32, [rows, BIN_WORDS])?;
    let cuts = temporary(has_cut, DType::I64, [rows, 4])?;
    let counts = temporary(has_cut, DType::U32, [rows, 1])?;
    let lists = temporary(has_cut, DType::I64, [rows, len])?;

    let launch = Launch::new("sample, greatest", &p).read(logits).write(&bests);
    let launch = [&bins, &counts].into_iter().fold(launch, |l, t| l.write_in_place_optional(t.as_ref()));
    only_gpu(stream, launch, "sample_best", threadgroups, threads)?;
    if let Some(bins) = &bins {
        let launch = Launch::new("sample, bins", &p).read(logits).read(&bests).read_write(bins);
        only_gpu(stream, launch, "sample_bins", threadgroups, threads)?;
    }
    if let Some(sums) = &sums {
        let launch =
            Launch::new("sample, weights", &p).read(logits).read(&bests).read_optional(bins.as_ref()).write(sums);
        let launch = launch.write_in_place_optional(cuts.as_ref());
        let launch = match &counts {
            Some(counts) => launch.read_write(counts),
            None => launch.read_optional(None),
        };
        let launch = launch.write_in_place_optional(lists.as_ref());
        only_gpu(stream, launch, "sample_weigh", threadgroups, threads)?;
    }
    let launch = Launch::new(OP, &p).read(logits).read_write(state).write(out).read(&bests);
    // The weights of parts are completed in place.
    let launch = match &sums {
        Some(sums) => launch.read_write(sums),
        None => launch.read_optional(None),
    };
    let launch = [&cuts, &counts, &lists].into_iter().fold(launch, |l, t| l.read_optional(t.as_ref()));
    only_gpu(stream, launch, "sample_draw", rows as u32, len.min(PART).div_ceil(4).next_multiple_of(32) as u32)
}

fn only_gpu(stream: &mut Stream, launch: Launch, entry: &str, threadgroups: u32, threads: u32) -> Result<()> {
    stream.launch(
        launch,
        |_| unreachable!("the CPU draws a row in one launch"),
        || Gpu {
            source: &SOURCE,
            defines: String::new(),
            entry: entry.into(),
            threadgroups: [threadgroups, 1, 1],
            threads: [threads, 1, 1],
        },
    )
}
