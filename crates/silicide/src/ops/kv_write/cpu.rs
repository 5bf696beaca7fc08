//! A copy on the caller's thread: it moves little, and waking threads would cost more.

use bytemuck::cast_slice;

use super::Params;
use crate::device::cpu::vector::{narrow, vectorized};
use crate::device::cpu::{Call, View};
use crate::{DType, Float};

pub(super) fn run<T: Float, C: Float>(call: &Call) {
    let p: Params = call.params();
    let positions = call.slice::<u32>(2);
    let latest = positions.iter().map(|&p| p as i32).max().unwrap_or(-1);
    let table = if p.pages != 0 { call.slice::<u32>(3) } else { &[] };
    // The page and the row of each token, if it has a place.
    let place = |position: u32| match position as i32 {
        at if p.ring != 0 => {
            // What a newer token of this launch lies over is not written.
            (at >= 0 && ((latest - at) as u32) < p.capacity).then(|| (0, position % p.capacity))
        }
        _ if position >= p.capacity => None,
        _ if p.pages == 0 => Some((0, position)),
        _ => {
            Some((table[(position / p.page_size) as usize], position % p.page_size)).filter(|&(page, _)| page < p.pages)
        }
    };
    let places = || positions.iter().map(|&position| place(position)).enumerate();
    let places = || places().filter_map(|(token, place)| Some((token, place?)));
    vectorized(
        #[inline(always)]
        || {
            let strides = |strides: [u32; 2], page: usize| [p.page_strides[page], strides[0], strides[1]];
            let (k_to, v_to) = (strides(p.k_cache_strides, 0), strides(p.v_cache_strides, 1));
            write(&p, places(), call.view::<T>(0), p.k_strides, call.view::<C>(4), k_to);
            write(&p, places(), call.view::<T>(1), p.v_strides, call.view::<C>(5), v_to);
        },
    );
}

#[inline(always)]
fn write<T: Float, C: Float>(
    p: &Params,
    places: impl Iterator<Item = (usize, (u32, u32))>,
    from: View<T>,
    strides: [u32; 2],
    to: View<C>,
    to_strides: [u32; 3],
) {
    let dim = p.dim as usize;
    for (token, (page, row)) in places {
        for head in 0..p.heads as usize {
            let at = token * strides[0] as usize + head * strides[1] as usize;
            let to_at = [page as usize, row as usize, head];
            let to_at = to_at.iter().zip(to_strides).map(|(i, stride)| i * stride as usize).sum();
            // SAFETY: one thread copies, between memory that does not overlap.
            let (from, to) = unsafe { (from.row(at, dim), to.row_mut(to_at, dim)) };
            match T::DTYPE {
                DType::F32 => narrow(cast_slice(from), to),
                _ => to.iter_mut().zip(from).for_each(|(to, from)| *to = C::from_f32(from.to_f32())),
            }
        }
    }
}
