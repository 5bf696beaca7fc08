//! Sixteen lanes by the instructions of each level.
//!
//! Kernels are written once, over [`Simd`], so that nothing is ever summed across lanes: in a product a lane is an output
//! row of the weight, in attention's scores it is a key.
#![allow(unsafe_op_in_unsafe_fn, reason = "each function is one or two instructions, unsafe for their level alone")]

use super::{Features, Level};
use crate::DType;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// Bytes of four activations encoded for [`Simd::dot`].
pub(crate) const QUAD: usize = 8;

/// The instructions of one level.
///
/// # Safety
/// Every function may run only on a machine of that level, which is so inside [`run`].
pub(crate) trait Simd: Copy {
    /// Sixteen `f32`.
    type F: Copy;
    /// Sixteen `u32`, or 64 bytes.
    type I: Copy;
    /// Sixteen integer sums of products of bytes with activations.
    type Sum: Copy;
    /// Activation rows and panels whose sums fit in the registers: (12, 2), (6, 1) or (2, 1).
    const TILE: (usize, usize);
    /// Whether bytes are multiplied as they are, and the registers hold the codes of a unit beside the sums of several rows.
    const BYTE_DOT: bool;

    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn load(p: *const f32) -> Self::F;
    unsafe fn store(p: *mut f32, x: Self::F);
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Turns sixteen rows of sixteen into columns.
    #[inline(always)]
    unsafe fn transpose(rows: &mut [Self::F; LANES]) {
        let mut square = [[0f32; LANES]; LANES];
        for (line, row) in square.iter_mut().zip(rows.iter()) {
            Self::store(line.as_mut_ptr(), *row);
        }
        for (i, row) in rows.iter_mut().enumerate() {
            let column: [f32; LANES] = std::array::from_fn(|j| square[j][i]);
            *row = Self::load(column.as_ptr());
        }
    }
    /// Widens sixteen numbers of a floating-point type, at any alignment.
    #[inline(always)]
    unsafe fn load_float(p: *const u8, dtype: DType) -> Self::F {
        match dtype {
            DType::F16 => Self::load_f16(p.cast()),
            DType::BF16 => Self::from_bits(Self::shl(Self::load_u16(p.cast()), 16)),
            _ => Self::load(p.cast()),
        }
    }
    /// Widens sixteen f16.
    unsafe fn load_f16(p: *const u16) -> Self::F;
    /// Widens sixteen u16 to the low halves of lanes.
    unsafe fn load_u16(p: *const u16) -> Self::I;
    /// Widens sixteen bytes.
    unsafe fn load_u8(p: *const u8) -> Self::I;
    /// Widens sixteen signed bytes.
    unsafe fn load_i8(p: *const i8) -> Self::I;

    /// Asks for the cache line at `p`, which need not be an address of ours.
    unsafe fn prefetch(p: *const u8);
    unsafe fn load_bytes(p: *const u8) -> Self::I;
    unsafe fn splat_u32(x: u32) -> Self::I;
    unsafe fn and(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn or(a: Self::I, b: Self::I) -> Self::I;
    /// Shifts each lane right.
    unsafe fn shr(x: Self::I, n: u32) -> Self::I;
    /// Shifts each lane left.
    unsafe fn shl(x: Self::I, n: u32) -> Self::I;
    /// Replaces each byte, all of them below 16, by that entry of the table.
    unsafe fn lookup(table: &[u8; 16], x: Self::I) -> Self::I;
    /// The lanes, as signed numbers.
    unsafe fn to_f32(x: Self::I) -> Self::F;
    /// The lanes, as the bits of numbers.
    unsafe fn from_bits(x: Self::I) -> Self::F;

    /// `a` in lanes where `x` is `value`, else `b`.
    unsafe fn select(x: Self::I, value: u32, a: Self::F, b: Self::F) -> Self::F;

    /// Writes sixteen activations in -32639..=32639 as four quads for [`dot`](Simd::dot).
    unsafe fn encode(x: &[i32; LANES], to: *mut [u8; QUAD]);
    unsafe fn sum_zero() -> Self::Sum;
    /// Adds `x` to each sum.
    unsafe fn sum_add(sum: Self::Sum, x: i32) -> Self::Sum;
    /// Adds to each lane's sum the products of its four bytes with the four activations at `quad`.
    unsafe fn dot(sum: Self::Sum, x: Self::I, quad: *const u8) -> Self::Sum;
    unsafe fn sum_to_f32(sum: Self::Sum) -> Self::F;
}

/// Writes four activations a quad, two bytes each, in the order that `order` names.
#[inline(always)]
unsafe fn encode_in_order(x: &[i32; LANES], order: [usize; 4], to: *mut [u8; QUAD]) {
    for (i, x) in x.as_chunks::<4>().0.iter().enumerate() {
        let x = order.map(|j| x[j] as u16 as u64);
        *to.add(i) = (x[0] | x[1] << 16 | x[2] << 32 | x[3] << 48).to_le_bytes();
    }
}

/// Work that can be done at any level.
pub(crate) trait Kernel {
    /// Does the work.
    ///
    /// # Safety
    /// The machine is of level `S`, and the kernel's own pointers are good. Implementations are `inline(always)`, so that
    /// they are compiled with the level's instructions.
    unsafe fn run<S: Simd>(self);
}

/// Runs a kernel with the instructions of `features`.
///
/// # Safety
/// The kernel's own pointers are good.
pub(crate) unsafe fn run<K: Kernel>(features: Features, kernel: K) {
    match features.level() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => avx2::run(kernel),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Avx512Bf16 | Level::Amx => avx512::run(kernel),
        #[cfg(target_arch = "aarch64")]
        Level::Neon => neon::run(kernel),
        #[cfg(target_arch = "aarch64")]
        Level::NeonI8mm => neon::run_i8mm(kernel),
        _ => portable::run(kernel),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Transpose<'a>(&'a mut [[f32; LANES]; LANES]);

    impl Kernel for Transpose<'_> {
        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            let mut rows: [S::F; LANES] = std::array::from_fn(|i| S::load(self.0[i].as_ptr()));
            S::transpose(&mut rows);
            for (to, row) in self.0.iter_mut().zip(rows) {
                S::store(to.as_mut_ptr(), row);
            }
        }
    }

    #[test]
    fn rows_become_columns_at_every_level() {
        for &features in Features::all() {
            let mut square: [[f32; LANES]; LANES] =
                std::array::from_fn(|i| std::array::from_fn(|j| (i * LANES + j) as f32));
            // SAFETY: the kernel has no pointers of its own.
            unsafe { run(features, Transpose(&mut square)) };
            for (i, row) in square.iter().enumerate() {
                for (j, &x) in row.iter().enumerate() {
                    assert_eq!(x, (j * LANES + i) as f32, "{features}");
                }
            }
        }
    }
}
