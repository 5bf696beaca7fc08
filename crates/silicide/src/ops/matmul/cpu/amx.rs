//! The AMX form of the bf16 product: tiles of sixteen rows by sixteen lanes, 32 elements of `k` deep.
//!
//! The intrinsics are not stable, so the instructions are written out.
#![allow(unsafe_op_in_unsafe_fn, reason = "pointers are into buffers whose sizes the callers of these kernels set")]

use std::arch::asm;
use std::ops::Range;

use super::bf16::Product;
use super::pack::UNIT;
use crate::device::cpu::simd::avx512::Avx512;
use crate::device::cpu::simd::{LANES, Simd};

/// Rows of a tile.
const TILE: usize = 16;

/// What LDTILECFG reads.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Eight tiles of sixteen rows of 64 bytes.
static CONFIG: Config = Config {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// The sums of 32 rows by two panels.
#[repr(C, align(64))]
struct Sums([[[f32; LANES]; TILE]; 4]);

impl Product<'_> {
    /// As `rows`, by tiles: the rows' buffer is padded to a multiple of 32 rows.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")]
    pub(super) unsafe fn amx_rows<const P: usize>(&self, units: Range<usize>, weight: [*const u16; P]) {
        let mut sums = Sums([[[0.0; LANES]; TILE]; 4]);
        let stride = self.layout.units * UNIT;
        // The tiles' configuration is the thread's own; it is given back before anything else runs here.
        asm!("ldtilecfg [{}]", in(reg) &CONFIG, options(nostack, readonly, preserves_flags));
        for row in self.rows.clone().step_by(2 * TILE) {
            let x = self.x.add(row * stride + units.start * UNIT);
            // With a single panel the second column of tiles does the first one's work again.
            tiles(x, stride * 2, weight[0], weight[P - 1], units.len(), &mut sums);
            for r in 0..(2 * TILE).min(self.rows.end - row) {
                for p in 0..P {
                    let sum = Avx512::load(sums.0[r / TILE * 2 + p][r % TILE].as_ptr());
                    let panel = self.panels.start + p;
                    let sum = match units.start {
                        0 => sum,
                        _ => Avx512::fma(sum, Avx512::splat(1.0), self.out.load::<Avx512>(row + r, panel)),
                    };
                    self.out.store::<Avx512>(row + r, panel, sum);
                }
            }
        }
        asm!("tilerelease", options(nostack, nomem, preserves_flags));
    }
}

/// Sums 32 rows at `x`, `stride` bytes apart, by two panels, over `units` units.
unsafe fn tiles(x: *const u16, stride: usize, left: *const u16, right: *const u16, units: usize, sums: &mut Sums) {
    asm!(
        "tilezero tmm0",
        "tilezero tmm1",
        "tilezero tmm2",
        "tilezero tmm3",
        "2:",
        "tileloadd tmm4, [{upper} + {stride}]",
        "tileloadd tmm6, [{left} + {line}]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tileloadd tmm7, [{right} + {line}]",
        "tdpbf16ps tmm1, tmm4, tmm7",
        "tileloadd tmm5, [{lower} + {stride}]",
        "tdpbf16ps tmm2, tmm5, tmm6",
        "tdpbf16ps tmm3, tmm5, tmm7",
        "add {upper}, 64",
        "add {lower}, 64",
        "add {left}, 1024",
        "add {right}, 1024",
        "dec {units}",
        "jnz 2b",
        "tilestored [{sums} + {line}], tmm0",
        "tilestored [{sums} + {line} + 1024], tmm1",
        "tilestored [{sums} + {line} + 2048], tmm2",
        "tilestored [{sums} + {line} + 3072], tmm3",
        upper = inout(reg) x => _,
        lower = inout(reg) x.byte_add(TILE * stride) => _,
        left = inout(reg) left => _,
        right = inout(reg) right => _,
        units = inout(reg) units => _,
        stride = in(reg) stride,
        line = in(reg) 64usize,
        sums = in(reg) sums.0.as_mut_ptr(),
        out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
        out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
        options(nostack),
    );
}

/// `steps` products of tiles in registers, four sums in turn: what AMX does at best.
///
/// # Safety
///
/// The machine has AMX tiles of bf16, and the process may use them.
pub(in crate::ops::matmul) unsafe fn tile_products(steps: usize) {
    let zeros = Sums([[[0.0; LANES]; TILE]; 4]);
    asm!("ldtilecfg [{}]", in(reg) &CONFIG, options(nostack, readonly, preserves_flags));
    asm!(
        "tilezero tmm0",
        "tilezero tmm1",
        "tilezero tmm2",
        "tilezero tmm3",
        "tileloadd tmm4, [{zeros} + {line}]",
        "tileloadd tmm5, [{zeros} + {line}]",
        "2:",
        "tdpbf16ps tmm0, tmm4, tmm5",
        "tdpbf16ps tmm1, tmm4, tmm5",
        "tdpbf16ps tmm2, tmm4, tmm5",
        "tdpbf16ps tmm3, tmm4, tmm5",
        "dec {steps}",
        "jnz 2b",
        zeros = in(reg) zeros.0.as_ptr(),
        line = in(reg) 64usize,
        steps = inout(reg) steps.div_ceil(4) => _,
        out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _,
        options(nostack),
    );
    asm!("tilerelease", options(nostack, nomem, preserves_flags));
}
