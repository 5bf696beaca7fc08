//! A counting sort by the caller's thread: the products that follow are far longer.

use super::Params;
use crate::device::cpu::Call;
use crate::device::cpu::scratch::with_scratch;

pub(super) fn run(call: &Call) {
    let p: Params = call.params();
    let (ids, order, tiles) = (call.slice::<u32>(0), call.view::<u32>(1), call.view::<u32>(2));
    // SAFETY: this task is alone.
    let (order, tiles) = unsafe { (order.row_mut(0, order.len()), tiles.row_mut(0, tiles.len())) };
    let expert = |id: u32| id.min(p.experts) as usize;
    let experts = p.experts as usize + 1;
    with_scratch(experts, |places: &mut [u32]| {
        places.fill(0);
        ids.iter().for_each(|&id| places[expert(id)] += 1);
        let (mut before, mut tile) = (0, 0);
        for (e, place) in places.iter_mut().enumerate() {
            let count = std::mem::replace(place, before);
            let end = if e + 1 == experts { p.tiles } else { (before + count) / p.rows + e as u32 + 1 };
            for i in 0..end - tile {
                let done = i.saturating_mul(p.rows).min(count);
                let of_tile = [e as u32, before + done, p.rows.min(count - done)];
                tiles[(tile + i) as usize * 3..][..3].copy_from_slice(&of_tile);
            }
            tile = end;
            before += count;
        }
        for (pair, &id) in ids.iter().enumerate() {
            let place = &mut places[expert(id)];
            order[*place as usize] = pair as u32;
            *place += 1;
        }
    });
}
