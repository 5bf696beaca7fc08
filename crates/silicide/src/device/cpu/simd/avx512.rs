//! AVX-512 with VNNI: a vector is one register.
#![allow(unsafe_op_in_unsafe_fn, reason = "see the parent module")]

use std::arch::x86_64::*;

use super::{Kernel, LANES, QUAD, Simd};

#[derive(Clone, Copy)]
pub(crate) struct Avx512;

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) {
    kernel.run::<Avx512>();
}

impl Simd for Avx512 {
    type F = __m512;
    type I = __m512i;
    /// The sums with the high and with the low bytes of activations.
    type Sum = [__m512i; 2];
    const TILE: (usize, usize) = (12, 2);
    const BYTE_DOT: bool = true;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        _mm512_set1_ps(x)
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        _mm512_loadu_ps(p)
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: Self::F) {
        _mm512_storeu_ps(p, x);
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        _mm512_mul_ps(a, b)
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        _mm512_fmadd_ps(a, b, c)
    }
    #[inline(always)]
    unsafe fn transpose(rows: &mut [Self::F; 16]) {
        // Pairs of rows exchange elements, then pairs of elements, then quarters, twice.
        let r = *rows;
        let mut t = [_mm512_setzero_ps(); 16];
        for i in 0..8 {
            t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
            t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
        }
        let mut u = t;
        for i in 0..4 {
            let pd = |x| _mm512_castps_pd(x);
            let [a, b, c, d] = [pd(t[4 * i]), pd(t[4 * i + 1]), pd(t[4 * i + 2]), pd(t[4 * i + 3])];
            u[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
            u[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
            u[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
            u[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
        }
        for i in 0..4 {
            let even = _mm512_shuffle_f32x4::<0x88>(u[i], u[4 + i]);
            let odd = _mm512_shuffle_f32x4::<0xdd>(u[i], u[4 + i]);
            let even_below = _mm512_shuffle_f32x4::<0x88>(u[8 + i], u[12 + i]);
            let odd_below = _mm512_shuffle_f32x4::<0xdd>(u[8 + i], u[12 + i]);
            rows[i] = _mm512_shuffle_f32x4::<0x88>(even, even_below);
            rows[4 + i] = _mm512_shuffle_f32x4::<0x88>(odd, odd_below);
            rows[8 + i] = _mm512_shuffle_f32x4::<0xdd>(even, even_below);
            rows[12 + i] = _mm512_shuffle_f32x4::<0xdd>(odd, odd_below);
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::F {
        _mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))
    }
    #[inline(always)]
    unsafe fn load_u16(p: *const u16) -> Self::I {
        _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()))
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::I {
        _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()))
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self::I {
        _mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        _mm_prefetch::<_MM_HINT_T0>(p.cast());
    }
    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> Self::I {
        _mm512_loadu_si512(p.cast())
    }
    #[inline(always)]
    unsafe fn splat_u32(x: u32) -> Self::I {
        _mm512_set1_epi32(x as i32)
    }
    #[inline(always)]
    unsafe fn and(a: Self::I, b: Self::I) -> Self::I {
        _mm512_and_si512(a, b)
    }
    #[inline(always)]
    unsafe fn or(a: Self::I, b: Self::I) -> Self::I {
        _mm512_or_si512(a, b)
    }
    #[inline(always)]
    unsafe fn shr(x: Self::I, n: u32) -> Self::I {
        _mm512_srlv_epi32(x, _mm512_set1_epi32(n as i32))
    }
    #[inline(always)]
    unsafe fn shl(x: Self::I, n: u32) -> Self::I {
        _mm512_sllv_epi32(x, _mm512_set1_epi32(n as i32))
    }
    #[inline(always)]
    unsafe fn lookup(table: &[u8; 16], x: Self::I) -> Self::I {
        _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())), x)
    }
    #[inline(always)]
    unsafe fn to_f32(x: Self::I) -> Self::F {
        _mm512_cvtepi32_ps(x)
    }
    #[inline(always)]
    unsafe fn from_bits(x: Self::I) -> Self::F {
        _mm512_castsi512_ps(x)
    }
    #[inline(always)]
    unsafe fn select(x: Self::I, value: u32, a: Self::F, b: Self::F) -> Self::F {
        _mm512_mask_blend_ps(_mm512_cmpeq_epi32_mask(x, _mm512_set1_epi32(value as i32)), b, a)
    }
    #[inline(always)]
    unsafe fn encode(x: &[i32; LANES], to: *mut [u8; QUAD]) {
        // x = 256 * high + low, both signed bytes: these instructions multiply unsigned by signed.
        let x = _mm512_loadu_si512(x.as_ptr().cast());
        let high = _mm512_cvtepi32_epi8(_mm512_srai_epi32(_mm512_add_epi32(x, _mm512_set1_epi32(128)), 8));
        let low = _mm512_cvtepi32_epi8(x);
        _mm_storeu_si128(to.cast(), _mm_unpacklo_epi32(high, low));
        _mm_storeu_si128(to.add(2).cast(), _mm_unpackhi_epi32(high, low));
    }
    #[inline(always)]
    unsafe fn sum_zero() -> Self::Sum {
        [_mm512_setzero_si512(); 2]
    }
    #[inline(always)]
    unsafe fn sum_add(sum: Self::Sum, x: i32) -> Self::Sum {
        [sum[0], _mm512_add_epi32(sum[1], _mm512_set1_epi32(x))]
    }
    #[inline(always)]
    unsafe fn dot(sum: Self::Sum, x: Self::I, quad: *const u8) -> Self::Sum {
        let quad = quad.cast::<i32>();
        let low = _mm512_dpbusd_epi32(sum[1], x, _mm512_set1_epi32(quad.add(1).read_unaligned()));
        [_mm512_dpbusd_epi32(sum[0], x, _mm512_set1_epi32(quad.read_unaligned())), low]
    }
    #[inline(always)]
    unsafe fn sum_to_f32(sum: Self::Sum) -> Self::F {
        _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(sum[0], 8), sum[1]))
    }
}
