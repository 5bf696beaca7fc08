//! The rates of a CPU.

use std::hint::black_box;
use std::time::{Duration, Instant};

use super::PeakRates;
use crate::device::cpu::simd::{self, Kernel, LANES, Simd};
use crate::device::cpu::{Features, Level, Pool};
use crate::{Device, Result};

/// Steps of a task, some tens of microseconds.
const STEPS: usize = 1 << 13;

pub(super) fn peak_rates(device: &Device, pool: &Pool, features: Features) -> Result<PeakRates> {
    let f32 = rate(pool, SUMS * LANES * 2, || {
        let mut out = [0.0; LANES];
        // SAFETY: the kernel writes to where it is told, sixteen numbers.
        unsafe { simd::run(features, Fma { seeds: black_box(&[0.5; LANES]), out: &mut out }) };
        black_box(out);
    });
    let (bf16, int8) = instructions(pool, features.level());
    Ok(PeakRates { f32, bf16, int8, read: Some(read(device, pool, features)?) })
}

/// Operations a second where each thread does `each` in each of the steps of `task`.
fn rate(pool: &Pool, each: usize, task: impl Fn() + Sync) -> f64 {
    /// Long enough for a quiet moment, and for a clock that rises under load.
    const LONG: Duration = Duration::from_millis(30);
    let threads = pool.threads();
    let (first, mut best) = (Instant::now(), 0f64);
    while best == 0.0 || first.elapsed() < LONG {
        let begun = Instant::now();
        // Several a thread, so that one which starts late has less.
        pool.parallel(16 * threads, &|_| task());
        best = best.max((16 * threads * each * STEPS) as f64 / begun.elapsed().as_secs_f64());
    }
    best
}

/// Sums that depend on nothing but themselves: what two units of a latency of four or five keep in flight.
const SUMS: usize = 12;

struct Fma<'a> {
    seeds: &'a [f32; LANES],
    out: &'a mut [f32; LANES],
}

impl Kernel for Fma<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: loads and stores are of the sixteen numbers that the fields are.
        unsafe {
            let x = S::load(self.seeds.as_ptr());
            let mut sums = [x; SUMS];
            for _ in 0..STEPS {
                for sum in &mut sums {
                    *sum = S::fma(*sum, x, x);
                }
            }
            let one = S::splat(1.0);
            let all = sums.into_iter().fold(S::splat(0.0), |all, sum| S::fma(sum, one, all));
            S::store(self.out.as_mut_ptr(), all);
        }
    }
}

/// Bytes a second that the threads read, each from one place or from two, whichever is faster: it differs by processor.
fn read(device: &Device, pool: &Pool, features: Features) -> Result<f64> {
    /// Past the caches; a piece of it is read at once, as a weight is.
    const SET: usize = 64 << 20;
    const PIECE: usize = 8 << 20;
    const LONG: Duration = Duration::from_millis(400);
    let set = device.tensor(&vec![1f32; SET], [SET])?;
    let set = set.buffer().address() as *const f32 as usize;
    let tasks = 8 * pool.threads();
    let part = PIECE / tasks / (2 * LANES) * 2 * LANES;
    let (first, mut best) = (Instant::now(), f64::INFINITY);
    for turn in 0.. {
        let piece = set + turn % (SET / PIECE) * PIECE * 4;
        let begun = Instant::now();
        pool.parallel(tasks, &|i| {
            let (from, mut out) = ((piece + i * part * 4) as *const f32, [0.0; LANES]);
            // SAFETY: the set holds `part` numbers from there, and nothing writes them.
            unsafe {
                match turn / (SET / PIECE) % 2 {
                    0 => simd::run(features, Read::<1> { from, len: part, out: &mut out }),
                    _ => simd::run(features, Read::<2> { from, len: part, out: &mut out }),
                }
            }
            black_box(out);
        });
        best = best.min(begun.elapsed().as_secs_f64());
        if first.elapsed() > LONG {
            break;
        }
    }
    Ok((4 * part * tasks) as f64 / best)
}

/// The sum of `len` numbers, read from `PLACES` at a time.
struct Read<'a, const PLACES: usize> {
    from: *const f32,
    len: usize,
    out: &'a mut [f32; LANES],
}

impl<const PLACES: usize> Kernel for Read<'_, PLACES> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        /// Bytes, as products of one row ask.
        const AHEAD: usize = 12 << 10;
        // SAFETY: the loads are of the `len` numbers; what is asked for may lie anywhere.
        unsafe {
            let one = S::splat(1.0);
            let mut sums = [S::splat(0.0); PLACES];
            let each = self.len / PLACES;
            for i in (0..each).step_by(LANES) {
                for (place, sum) in sums.iter_mut().enumerate() {
                    let at = self.from.add(place * each + i);
                    S::prefetch(at.cast::<u8>().wrapping_add(AHEAD));
                    *sum = S::fma(S::load(at), one, *sum);
                }
            }
            let all = sums.into_iter().fold(S::splat(0.0), |all, sum| S::fma(sum, one, all));
            S::store(self.out.as_mut_ptr(), all);
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn instructions(pool: &Pool, level: Level) -> (Option<f64>, Option<f64>) {
    // SAFETY: each function runs where the level has its instructions.
    unsafe {
        let int8 = (level >= Level::Avx512).then(|| rate(pool, x86::SUMS * 64 * 2, || x86::bytes()));
        let vectors = (level >= Level::Avx512Bf16).then(|| rate(pool, x86::SUMS * 32 * 2, || x86::bf16()));
        let tiles =
            (level >= Level::Amx).then(|| rate(pool, 16 * 16 * 32 * 2, || super::super::cpu::tile_products(STEPS)));
        (tiles.or(vectors), int8)
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn instructions(_: &Pool, _: Level) -> (Option<f64>, Option<f64>) {
    (None, None)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use super::STEPS;

    pub(super) const SUMS: usize = 12;

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) fn bytes() {
        let x = black_box(_mm512_set1_epi8(3));
        let mut sums = [x; SUMS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, x, x);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn bf16() {
        let half = black_box(_mm512_set1_ps(0.5));
        let x = _mm512_cvtne2ps_pbh(half, half);
        let mut sums = [half; SUMS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, x, x);
            }
        }
        black_box(sums);
    }
}
