//! Few elements of a row: one task a row.

use super::Params;
use crate::device::cpu::Call;
use crate::device::cpu::scratch::with_scratch;

pub(super) fn run(call: &Call) {
    let p: Params = call.params();
    let (logits, recent) = (call.view::<f32>(0), call.view::<u32>(1));
    let (count, vocab) = (p.count as usize, p.vocab as usize);
    for row in 0..p.rows as usize {
        // SAFETY: no other thread is at work, and the two share no memory.
        let (logits, recent) =
            unsafe { (logits.row_mut(row * p.stride as usize, vocab), recent.row(row * count, count)) };
        with_scratch(count, |ids: &mut [u32]| {
            ids.copy_from_slice(recent);
            ids.sort_unstable();
            for same in ids.chunk_by(|a, b| a == b) {
                let Some(logit) = logits.get_mut(same[0] as usize) else { continue };
                let factor = if *logit < 0.0 { p.repetition } else { p.inverse };
                *logit = logit.mul_add(factor, -p.frequency.mul_add(same.len() as f32, p.presence));
            }
        });
    }
}
