//! Reading packed panels in registers: codes as quads of bytes, scales and elements as `f32`.
#![allow(unsafe_op_in_unsafe_fn, reason = "pointers are into a panel whose layout is at hand")]

use super::pack::{Codes, PackLayout, RECORD, Scales, UNIT};
use crate::device::cpu::Level;
use crate::device::cpu::simd::{LANES, Simd};

/// The code kinds of integer kernels, as const parameters: the bits, or this for 4-bit indices into a table.
pub(super) const TABLE: usize = 14;

/// How far ahead of what is read memory is asked for. Intel's processors fetch ahead only as far as a page's end; Zen 5 keeps
/// a third of the requests in flight that it can. Elsewhere nothing is known.
#[inline(always)]
fn ahead(level: Level) -> usize {
    match level {
        Level::Amx => 4 << 10,
        Level::Avx512 | Level::Avx512Bf16 => 12 << 10,
        _ => 0,
    }
}

/// Asks for the memory that comes [`ahead`] of the `len` bytes at `from`, where that helps.
#[inline(always)]
pub(super) unsafe fn ask_ahead<S: Simd>(level: Level, from: *const u8, len: usize) {
    let ahead = ahead(level);
    if ahead > 0 {
        ask::<S>(from.wrapping_add(ahead), len);
    }
}

/// Asks for what lies before the first bytes that [`ask_ahead`] asks for.
#[inline(always)]
pub(super) unsafe fn ask_first<S: Simd>(level: Level, from: *const u8) {
    ask::<S>(from, ahead(level));
}

#[inline(always)]
unsafe fn ask<S: Simd>(from: *const u8, len: usize) {
    for line in (0..len).step_by(64) {
        S::prefetch(from.wrapping_add(line));
    }
}

/// Bytes of a unit's codes of kind `KIND`.
pub(super) const fn unit_bytes<const KIND: usize>() -> usize {
    let bits = if KIND == TABLE { 4 } else { KIND };
    UNIT * LANES / 8 * bits
}

/// The eight quads of a unit whose codes, of kind `KIND`, begin at `codes`.
#[inline(always)]
pub(super) unsafe fn quads<S: Simd, const KIND: usize>(codes: *const u8, table: &[u8; 16]) -> [S::I; 8] {
    let mut x = [S::splat_u32(0); 8];
    let (low, high) = match KIND {
        2 => (2, 0),
        3 => (2, 1),
        5 => (4, 1),
        6 => (4, 2),
        8 => (8, 0),
        _ => (4, 0),
    };
    for (i, x) in x.iter_mut().enumerate() {
        *x = plane_quad::<S>(codes, low, i);
        if high > 0 {
            let bits = plane_quad::<S>(codes.add(64 * low), high, i);
            *x = S::or(*x, S::shl(bits, low as u32));
        }
        if KIND == TABLE {
            *x = S::lookup(table, *x);
        }
    }
    x
}

/// Quad `i` of a unit in a plane of `width` bits.
#[inline(always)]
unsafe fn plane_quad<S: Simd>(plane: *const u8, width: usize, i: usize) -> S::I {
    let quads = 8 / width;
    let x = S::load_bytes(plane.add(i / quads * 64));
    if width == 8 {
        return x;
    }
    S::and(S::shr(x, (i % quads * width) as u32), S::splat_u32(0x0101_0101 * ((1 << width) - 1)))
}

/// Scale of a group of the record at `record`, and its bias where there is one: `w = scale * (code - zero) + bias`, where
/// the layout has `zero`.
#[inline(always)]
pub(super) unsafe fn scale<S: Simd>(layout: &PackLayout, record: *const u8, group: usize) -> (S::F, Option<S::F>) {
    let (group_bytes, block_bytes) = layout.scales.bytes();
    let at = record.add(block_bytes + group * group_bytes);
    let (scale, bias) = match layout.scales {
        Scales::None => (S::splat(1.0), None),
        Scales::Float { dtype, bias: false } => (S::load_float(at, dtype), None),
        Scales::Float { dtype, bias: true } => {
            (S::load_float(at, dtype), Some(S::load_float(at.add(group_bytes / 2), dtype)))
        }
        Scales::E8m0 => (e8m0::<S>(S::load_u8(at)), None),
        Scales::E4m3 => (e4m3::<S>(S::load_u8(at)), None),
        Scales::Signed => (S::mul(S::load_f16(record.cast()), S::to_f32(S::load_i8(at.cast()))), None),
        Scales::Pair | Scales::Nibbles => {
            let (d, dmin) = (S::load_f16(record.cast()), S::load_f16(record.add(LANES * 2).cast()));
            let (scale, min) = if layout.scales == Scales::Pair {
                (S::load_u8(at), S::load_u8(at.add(LANES)))
            } else {
                let x = S::load_u8(at);
                (S::and(x, S::splat_u32(15)), S::shr(x, 4))
            };
            (S::mul(d, S::to_f32(scale)), Some(S::mul(dmin, S::to_f32(min))))
        }
    };
    match layout.codes {
        Codes::Table { factor, .. } => (S::mul(scale, S::splat(factor)), bias),
        _ => (scale, bias),
    }
}

/// The powers of two that lanes hold as a biased exponent each.
#[inline(always)]
unsafe fn e8m0<S: Simd>(x: S::I) -> S::F {
    // The exponent of an f32, but for the power below its normal numbers.
    let value = S::select(x, 0, S::splat(f32::from_bits(1 << 22)), S::from_bits(S::shl(x, 23)));
    S::select(x, 255, S::splat(f32::NAN), value)
}

/// The values of lanes that hold an e4m3 byte each.
#[inline(always)]
unsafe fn e4m3<S: Simd>(x: S::I) -> S::F {
    let sign = S::shl(S::and(x, S::splat_u32(0x80)), 24);
    let magnitude = S::and(x, S::splat_u32(0x7f));
    let bits = S::or(sign, S::shl(magnitude, 20));
    // The exponent's bias is 7 where f32 has 127.
    let value = S::mul(S::from_bits(bits), S::splat(f32::from_bits((127 + 120) << 23)));
    S::select(magnitude, 0x7f, S::splat(f32::NAN), value)
}

/// Two elements of each of a panel's rows, that follow each other, of a bf16 or else an f16 weight.
#[inline(always)]
pub(super) unsafe fn pair<S: Simd, const BF16: bool>(from: *const u8) -> [S::F; 2] {
    if BF16 {
        let pair = S::load_bytes(from);
        [S::from_bits(S::shl(pair, 16)), S::from_bits(S::and(pair, S::splat_u32(0xffff_0000)))]
    } else {
        [S::load_f16(from.cast()), S::load_f16(from.add(2 * LANES).cast())]
    }
}

/// Writes the elements of `count` units of a panel as `[k][row]`.
#[inline(always)]
pub(super) unsafe fn dequantize<S: Simd>(
    layout: &PackLayout,
    panel: *const u8,
    first: usize,
    count: usize,
    out: *mut f32,
) {
    match layout.codes {
        Codes::F32 => {
            let from = panel.cast::<f32>().add(first * UNIT * LANES);
            std::ptr::copy_nonoverlapping(from, out, count * UNIT * LANES);
        }
        Codes::F16 => pairs::<S, false>(panel, first, count, out),
        Codes::Bf16 => pairs::<S, true>(panel, first, count, out),
        Codes::Bits { bits, .. } => match bits {
            2 => codes::<S, 2>(layout, panel, first, count, &[0; 16], out),
            3 => codes::<S, 3>(layout, panel, first, count, &[0; 16], out),
            4 => codes::<S, 4>(layout, panel, first, count, &[0; 16], out),
            5 => codes::<S, 5>(layout, panel, first, count, &[0; 16], out),
            6 => codes::<S, 6>(layout, panel, first, count, &[0; 16], out),
            _ => codes::<S, 8>(layout, panel, first, count, &[0; 16], out),
        },
        Codes::Table { table, .. } => codes::<S, TABLE>(layout, panel, first, count, &table, out),
        Codes::E4m3 => codes::<S, E4M3>(layout, panel, first, count, &[0; 16], out),
    }
}

#[inline(always)]
unsafe fn pairs<S: Simd, const BF16: bool>(panel: *const u8, first: usize, count: usize, out: *mut f32) {
    let from = panel.add(first * UNIT * LANES * 2);
    for i in 0..count * UNIT / 2 {
        let [even, odd] = pair::<S, BF16>(from.add(i * LANES * 4));
        let out = out.add(i * LANES * 2);
        S::store(out, even);
        S::store(out.add(LANES), odd);
    }
}

/// Codes that only [`dequantize`] reads.
const E4M3: usize = 8 + 16;

#[inline(always)]
unsafe fn codes<S: Simd, const KIND: usize>(
    layout: &PackLayout,
    panel: *const u8,
    first: usize,
    count: usize,
    table: &[u8; 16],
    out: *mut f32,
) {
    let groups = UNIT.div_ceil(layout.group);
    let zero = S::splat(-layout.zero() as f32);
    for unit in first..first + count {
        let (_, record) = layout.record(unit / RECORD);
        let group = unit % RECORD * UNIT / layout.group;
        // Groups of 16 come two to a unit; larger ones are read again for each unit.
        let mut scales = [(zero, zero); 2];
        for (i, to) in scales[..groups].iter_mut().enumerate() {
            let (scale, bias) = scale::<S>(layout, panel.add(record), group + i);
            *to = (scale, bias.unwrap_or(S::mul(scale, zero)));
        }
        let from = panel.add(layout.codes_at(unit));
        let quads = if KIND == E4M3 { quads::<S, 8>(from, table) } else { quads::<S, KIND>(from, table) };
        let mut out = out.add((unit - first) * UNIT * LANES);
        for (i, quad) in quads.into_iter().enumerate() {
            let (scale, bias) = scales[i * groups / 8];
            for j in 0..4 {
                let code = S::and(S::shr(quad, 8 * j), S::splat_u32(0xff));
                let value = if KIND == E4M3 { e4m3::<S>(code) } else { S::to_f32(code) };
                S::store(out, S::fma(value, scale, bias));
                out = out.add(LANES);
            }
        }
    }
}
