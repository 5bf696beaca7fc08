//! NEON: a vector is four registers.
#![allow(unsafe_op_in_unsafe_fn, reason = "see the parent module")]

use std::arch::aarch64::*;
use std::arch::asm;

use super::{Kernel, LANES, QUAD, Simd, encode_in_order};

/// `I8MM`: with the dot product of unsigned with signed bytes.
#[derive(Clone, Copy)]
struct Neon<const I8MM: bool>;

#[target_feature(enable = "neon")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) {
    kernel.run::<Neon<false>>();
}

#[target_feature(enable = "neon,i8mm")]
pub(super) unsafe fn run_i8mm<K: Kernel>(kernel: K) {
    kernel.run::<Neon<true>>();
}

/// Applies an expression to each of the four registers.
macro_rules! each {
    (|$i:ident| $e:expr) => {
        [
            { const $i: usize = 0; $e },
            { const $i: usize = 1; $e },
            { const $i: usize = 2; $e },
            { const $i: usize = 3; $e },
        ]
    };
}

impl<const I8MM: bool> Simd for Neon<I8MM> {
    type F = [float32x4_t; 4];
    type I = [uint32x4_t; 4];
    /// The sums with the high and with the low bytes of activations; without `I8MM` only the second.
    type Sum = [[int32x4_t; 4]; 2];
    const TILE: (usize, usize) = (6, 1);
    const BYTE_DOT: bool = I8MM;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [vdupq_n_f32(x); 4]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        each!(|I| vld1q_f32(p.add(4 * I)))
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: Self::F) {
        each!(|I| vst1q_f32(p.add(4 * I), x[I]));
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        each!(|I| vmulq_f32(a[I], b[I]))
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        each!(|I| vfmaq_f32(c[I], a[I], b[I]))
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::F {
        each!(|I| {
            let x = vld1_u16(p.add(4 * I));
            let wide: float32x4_t;
            // The intrinsic wants a stable f16.
            asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) wide, in(vreg) x, options(pure, nomem, nostack, preserves_flags));
            wide
        })
    }
    #[inline(always)]
    unsafe fn load_u16(p: *const u16) -> Self::I {
        each!(|I| vmovl_u16(vld1_u16(p.add(4 * I))))
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::I {
        let x = vld1q_u8(p);
        let (low, high) = (vmovl_u8(vget_low_u8(x)), vmovl_high_u8(x));
        [vmovl_u16(vget_low_u16(low)), vmovl_high_u16(low), vmovl_u16(vget_low_u16(high)), vmovl_high_u16(high)]
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self::I {
        let x = vld1q_s8(p);
        let (low, high) = (vmovl_s8(vget_low_s8(x)), vmovl_high_s8(x));
        let wide =
            [vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)), vmovl_high_s16(high)];
        each!(|I| vreinterpretq_u32_s32(wide[I]))
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        asm!("prfm pldl1keep, [{}]", in(reg) p, options(nostack, readonly, preserves_flags));
    }
    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> Self::I {
        each!(|I| vreinterpretq_u32_u8(vld1q_u8(p.add(16 * I))))
    }
    #[inline(always)]
    unsafe fn splat_u32(x: u32) -> Self::I {
        [vdupq_n_u32(x); 4]
    }
    #[inline(always)]
    unsafe fn and(a: Self::I, b: Self::I) -> Self::I {
        each!(|I| vandq_u32(a[I], b[I]))
    }
    #[inline(always)]
    unsafe fn or(a: Self::I, b: Self::I) -> Self::I {
        each!(|I| vorrq_u32(a[I], b[I]))
    }
    #[inline(always)]
    unsafe fn shr(x: Self::I, n: u32) -> Self::I {
        each!(|I| vshlq_u32(x[I], vdupq_n_s32(-(n as i32))))
    }
    #[inline(always)]
    unsafe fn shl(x: Self::I, n: u32) -> Self::I {
        each!(|I| vshlq_u32(x[I], vdupq_n_s32(n as i32)))
    }
    #[inline(always)]
    unsafe fn lookup(table: &[u8; 16], x: Self::I) -> Self::I {
        let table = vld1q_u8(table.as_ptr());
        each!(|I| vreinterpretq_u32_u8(vqtbl1q_u8(table, vreinterpretq_u8_u32(x[I]))))
    }
    #[inline(always)]
    unsafe fn to_f32(x: Self::I) -> Self::F {
        each!(|I| vcvtq_f32_s32(vreinterpretq_s32_u32(x[I])))
    }
    #[inline(always)]
    unsafe fn from_bits(x: Self::I) -> Self::F {
        each!(|I| vreinterpretq_f32_u32(x[I]))
    }
    #[inline(always)]
    unsafe fn select(x: Self::I, value: u32, a: Self::F, b: Self::F) -> Self::F {
        each!(|I| vbslq_f32(vceqq_u32(x[I], vdupq_n_u32(value)), a[I], b[I]))
    }
    #[inline(always)]
    unsafe fn encode(x: &[i32; LANES], to: *mut [u8; QUAD]) {
        if I8MM {
            for (i, x) in x.as_chunks::<4>().0.iter().enumerate() {
                // x = 256 * high + low, both signed bytes.
                let high = x.map(|x| ((x + 128) >> 8) as u8);
                let low = x.map(|x| x as u8);
                *to.add(i) = [high[0], high[1], high[2], high[3], low[0], low[1], low[2], low[3]];
            }
        } else {
            // The even ones, then the odd ones, as `dot` takes them.
            encode_in_order(x, [0, 2, 1, 3], to);
        }
    }
    #[inline(always)]
    unsafe fn sum_zero() -> Self::Sum {
        [[vdupq_n_s32(0); 4]; 2]
    }
    #[inline(always)]
    unsafe fn sum_add(sum: Self::Sum, x: i32) -> Self::Sum {
        [sum[0], sum[1].map(|sum| vaddq_s32(sum, vdupq_n_s32(x)))]
    }
    #[inline(always)]
    unsafe fn dot(sum: Self::Sum, x: Self::I, quad: *const u8) -> Self::Sum {
        let both = vld1_u32(quad.cast());
        if I8MM {
            let high = each!(|I| dot_bytes::<0>(sum[0][I], x[I], both));
            return [high, each!(|I| dot_bytes::<1>(sum[1][I], x[I], both))];
        }
        let even = vreinterpretq_s16_u32(vdupq_lane_u32::<0>(both));
        let odd = vreinterpretq_s16_u32(vdupq_lane_u32::<1>(both));
        let low = each!(|I| {
            let bytes = vreinterpretq_u16_u32(x[I]);
            let sum = vaddq_s32(sum[1][I], dot_words(vandq_u16(bytes, vdupq_n_u16(0xff)), even));
            vaddq_s32(sum, dot_words(vshrq_n_u16::<8>(bytes), odd))
        });
        [sum[0], low]
    }
    #[inline(always)]
    unsafe fn sum_to_f32(sum: Self::Sum) -> Self::F {
        if I8MM {
            return each!(|I| vcvtq_f32_s32(vaddq_s32(vshlq_n_s32::<8>(sum[0][I]), sum[1][I])));
        }
        each!(|I| vcvtq_f32_s32(sum[1][I]))
    }
}

/// Adds the products of each lane's four bytes with the four signed bytes in lane `LANE` of `y`.
#[inline(always)]
unsafe fn dot_bytes<const LANE: usize>(sum: int32x4_t, x: uint32x4_t, y: uint32x2_t) -> int32x4_t {
    let mut sum = sum;
    // The intrinsic is not stable.
    asm!(
        "usdot {0:v}.4s, {1:v}.16b, {2:v}.4b[{lane}]",
        inout(vreg) sum, in(vreg) x, in(vreg) y, lane = const LANE,
        options(pure, nomem, nostack, preserves_flags)
    );
    sum
}

/// The sums of the products of neighbouring pairs.
#[inline(always)]
unsafe fn dot_words(x: uint16x8_t, y: int16x8_t) -> int32x4_t {
    let x = vreinterpretq_s16_u16(x);
    vpaddq_s32(vmull_s16(vget_low_s16(x), vget_low_s16(y)), vmull_high_s16(x, y))
}
