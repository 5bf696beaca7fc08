//! AVX2 with FMA and F16C: a vector is two registers.
#![allow(unsafe_op_in_unsafe_fn, reason = "see the parent module")]

use std::arch::x86_64::*;

use super::{Kernel, LANES, QUAD, Simd, encode_in_order};

#[derive(Clone, Copy)]
struct Avx2;

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) {
    kernel.run::<Avx2>();
}

impl Simd for Avx2 {
    type F = [__m256; 2];
    type I = [__m256i; 2];
    type Sum = [__m256i; 2];
    const TILE: (usize, usize) = (6, 1);
    const BYTE_DOT: bool = false;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [_mm256_set1_ps(x); 2]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))]
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: Self::F) {
        _mm256_storeu_ps(p, x[0]);
        _mm256_storeu_ps(p.add(8), x[1]);
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])]
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::F {
        [_mm256_cvtph_ps(_mm_loadu_si128(p.cast())), _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast()))]
    }
    #[inline(always)]
    unsafe fn load_u16(p: *const u16) -> Self::I {
        [_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())), _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(8).cast()))]
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::I {
        let x = _mm_loadu_si128(p.cast());
        [_mm256_cvtepu8_epi32(x), _mm256_cvtepu8_epi32(_mm_srli_si128(x, 8))]
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self::I {
        let x = _mm_loadu_si128(p.cast());
        [_mm256_cvtepi8_epi32(x), _mm256_cvtepi8_epi32(_mm_srli_si128(x, 8))]
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        _mm_prefetch::<_MM_HINT_T0>(p.cast());
    }
    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> Self::I {
        [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())]
    }
    #[inline(always)]
    unsafe fn splat_u32(x: u32) -> Self::I {
        [_mm256_set1_epi32(x as i32); 2]
    }
    #[inline(always)]
    unsafe fn and(a: Self::I, b: Self::I) -> Self::I {
        [_mm256_and_si256(a[0], b[0]), _mm256_and_si256(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn or(a: Self::I, b: Self::I) -> Self::I {
        [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn shr(x: Self::I, n: u32) -> Self::I {
        let n = _mm256_set1_epi32(n as i32);
        [_mm256_srlv_epi32(x[0], n), _mm256_srlv_epi32(x[1], n)]
    }
    #[inline(always)]
    unsafe fn shl(x: Self::I, n: u32) -> Self::I {
        let n = _mm256_set1_epi32(n as i32);
        [_mm256_sllv_epi32(x[0], n), _mm256_sllv_epi32(x[1], n)]
    }
    #[inline(always)]
    unsafe fn lookup(table: &[u8; 16], x: Self::I) -> Self::I {
        let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
        [_mm256_shuffle_epi8(table, x[0]), _mm256_shuffle_epi8(table, x[1])]
    }
    #[inline(always)]
    unsafe fn to_f32(x: Self::I) -> Self::F {
        [_mm256_cvtepi32_ps(x[0]), _mm256_cvtepi32_ps(x[1])]
    }
    #[inline(always)]
    unsafe fn from_bits(x: Self::I) -> Self::F {
        [_mm256_castsi256_ps(x[0]), _mm256_castsi256_ps(x[1])]
    }
    #[inline(always)]
    unsafe fn select(x: Self::I, value: u32, a: Self::F, b: Self::F) -> Self::F {
        let value = _mm256_set1_epi32(value as i32);
        let half = |x, a, b| _mm256_blendv_ps(b, a, _mm256_castsi256_ps(_mm256_cmpeq_epi32(x, value)));
        [half(x[0], a[0], b[0]), half(x[1], a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn encode(x: &[i32; LANES], to: *mut [u8; QUAD]) {
        // The even ones, then the odd ones, as `dot` takes them.
        encode_in_order(x, [0, 2, 1, 3], to);
    }
    #[inline(always)]
    unsafe fn sum_zero() -> Self::Sum {
        [_mm256_setzero_si256(); 2]
    }
    #[inline(always)]
    unsafe fn sum_add(sum: Self::Sum, x: i32) -> Self::Sum {
        sum.map(|sum| _mm256_add_epi32(sum, _mm256_set1_epi32(x)))
    }
    #[inline(always)]
    unsafe fn dot(sum: Self::Sum, x: Self::I, quad: *const u8) -> Self::Sum {
        // Bytes are widened and multiplied as 16 bits: the instruction on bytes would saturate.
        let quad = quad.cast::<i32>();
        let even = _mm256_set1_epi32(quad.read_unaligned());
        let odd = _mm256_set1_epi32(quad.add(1).read_unaligned());
        let mask = _mm256_set1_epi16(0xff);
        let half = |sum, x| {
            let sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_and_si256(x, mask), even));
            _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_srli_epi16(x, 8), odd))
        };
        [half(sum[0], x[0]), half(sum[1], x[1])]
    }
    #[inline(always)]
    unsafe fn sum_to_f32(sum: Self::Sum) -> Self::F {
        Self::to_f32(sum)
    }
}
