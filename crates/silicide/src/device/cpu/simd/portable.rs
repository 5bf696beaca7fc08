//! Arrays, for the compiler to make of them what it can.
#![allow(unsafe_op_in_unsafe_fn, reason = "see the parent module")]

use half::f16;

use super::{Kernel, LANES, QUAD, Simd, encode_in_order};

#[derive(Clone, Copy)]
struct Portable;

pub(super) unsafe fn run<K: Kernel>(kernel: K) {
    kernel.run::<Portable>();
}

#[inline(always)]
fn map2<T: Copy, U>(a: [T; LANES], b: [T; LANES], f: impl Fn(T, T) -> U) -> [U; LANES] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Simd for Portable {
    type F = [f32; LANES];
    type I = [u32; LANES];
    type Sum = [i32; LANES];
    const TILE: (usize, usize) = (2, 1);
    const BYTE_DOT: bool = false;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        p.cast::<Self::F>().read_unaligned()
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: Self::F) {
        p.cast::<Self::F>().write_unaligned(x);
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        map2(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // Not `mul_add`, which is a library call where the machine has no such instruction.
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::F {
        p.cast::<[u16; LANES]>().read_unaligned().map(|x| f16::from_bits(x).to_f32())
    }
    #[inline(always)]
    unsafe fn load_u16(p: *const u16) -> Self::I {
        p.cast::<[u16; LANES]>().read_unaligned().map(u32::from)
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::I {
        p.cast::<[u8; LANES]>().read_unaligned().map(u32::from)
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self::I {
        p.cast::<[i8; LANES]>().read_unaligned().map(|x| x as u32)
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> Self::I {
        p.cast::<Self::I>().read_unaligned()
    }
    #[inline(always)]
    unsafe fn splat_u32(x: u32) -> Self::I {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn and(a: Self::I, b: Self::I) -> Self::I {
        map2(a, b, |a, b| a & b)
    }
    #[inline(always)]
    unsafe fn or(a: Self::I, b: Self::I) -> Self::I {
        map2(a, b, |a, b| a | b)
    }
    #[inline(always)]
    unsafe fn shr(x: Self::I, n: u32) -> Self::I {
        x.map(|x| x >> n)
    }
    #[inline(always)]
    unsafe fn shl(x: Self::I, n: u32) -> Self::I {
        x.map(|x| x << n)
    }
    #[inline(always)]
    unsafe fn lookup(table: &[u8; 16], x: Self::I) -> Self::I {
        x.map(|x| u32::from_le_bytes(x.to_le_bytes().map(|i| table[i as usize & 15])))
    }
    #[inline(always)]
    unsafe fn to_f32(x: Self::I) -> Self::F {
        x.map(|x| x as i32 as f32)
    }
    #[inline(always)]
    unsafe fn from_bits(x: Self::I) -> Self::F {
        x.map(f32::from_bits)
    }
    #[inline(always)]
    unsafe fn select(x: Self::I, value: u32, a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| if x[i] == value { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn encode(x: &[i32; LANES], to: *mut [u8; QUAD]) {
        encode_in_order(x, [0, 1, 2, 3], to);
    }
    #[inline(always)]
    unsafe fn sum_zero() -> Self::Sum {
        [0; LANES]
    }
    #[inline(always)]
    unsafe fn sum_add(sum: Self::Sum, x: i32) -> Self::Sum {
        sum.map(|sum| sum + x)
    }
    #[inline(always)]
    unsafe fn dot(sum: Self::Sum, x: Self::I, quad: *const u8) -> Self::Sum {
        let quad = u64::from_le_bytes(quad.cast::<[u8; QUAD]>().read());
        let mut sum = sum;
        for j in 0..4 {
            let activation = (quad >> (16 * j)) as i16 as i32;
            for (sum, x) in sum.iter_mut().zip(x) {
                *sum += (x >> (8 * j) & 0xff) as i32 * activation;
            }
        }
        sum
    }
    #[inline(always)]
    unsafe fn sum_to_f32(sum: Self::Sum) -> Self::F {
        sum.map(|x| x as f32)
    }
}
