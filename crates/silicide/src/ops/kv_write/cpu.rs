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
    // The row of each token, if it has one.
    let row = |position: u32| match position as i32 {
        _ if p.ring == 0 => (position < p.capacity).then_some(position as usize),
        // What a newer token of this launch lies over is not written.
        at => (at >= 0 && ((latest - at) as u32) < p.capacity).then(|| (position % p.capacity) as usize),
    };
    let rows = || positions.iter().map(|&position| row(position)).enumerate();
    let rows = || rows().filter_map(|(token, row)| Some((token, row?)));
    vectorized(
        #[inline(always)]
        || {
            write(&p, rows(), call.view::<T>(0), p.k_strides, call.view::<C>(3), p.k_cache_strides);
            write(&p, rows(), call.view::<T>(1), p.v_strides, call.view::<C>(4), p.v_cache_strides);
        },
    );
}

#[inline(always)]
fn write<T: Float, C: Float>(
    p: &Params,
    rows: impl Iterator<Item = (usize, usize)>,
    from: View<T>,
    strides: [u32; 2],
    to: View<C>,
    to_strides: [u32; 2],
) {
    let dim = p.dim as usize;
    for (token, row) in rows {
        for head in 0..p.heads as usize {
            let at = token * strides[0] as usize + head * strides[1] as usize;
            let to_at = row * to_strides[0] as usize + head * to_strides[1] as usize;
            // SAFETY: one thread copies, between memory that does not overlap.
            let (from, to) = unsafe { (from.row(at, dim), to.row_mut(to_at, dim)) };
            match T::DTYPE {
                DType::F32 => narrow(cast_slice(from), to),
                _ => to.iter_mut().zip(from).for_each(|(to, from)| *to = C::from_f32(from.to_f32())),
            }
        }
    }
}
