//! Grids resampled to another height and width: position embeddings of vision towers, and images.

mod cpu;
#[cfg(test)]
mod tests;

use crate::device::{Gpu, Launch, Stream};
use crate::kernels::{KernelParams, KernelSource, kernel_params};
use crate::ops::check::{check, float_entry, size};
use crate::ops::rows::{packet, packets_align, whole};
use crate::{Result, Tensor};

/// What lies between the elements of a grid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ResizeFilter {
    /// A straight line between each two neighbours of an axis.
    #[default]
    Bilinear,
    /// A cubic through four neighbours of an axis, by Keys's convolution with `a = -0.75`, with
    /// [`antialias`](Resize::antialias) with `a = -0.5`, both as torch has it.
    Bicubic,
}

/// How [`resize`] resamples. The default is bilinear between the centres of elements, without antialiasing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Resize {
    /// What lies between elements.
    pub filter: ResizeFilter,
    /// Whether the first and the last element of an axis stay where they are, so that element `i` of `m` is at
    /// `i (n - 1) / (m - 1)` of `n`. Otherwise elements are areas, and the middle of `i` is at `(i + 1/2) n / m - 1/2`.
    pub align_corners: bool,
    /// Widens the filter by as much as an axis shrinks, so that every element counts. Past an edge is nothing, and the
    /// other weights grow; without it the edge itself goes on there.
    pub antialias: bool,
}

/// `x` as a grid of `size`, height and width.
///
/// `x` is `[height, width, dim]` in f32, f16 or bf16 with any strides: of an image with its channels first give a
/// [`permute`](Tensor::permute). Weights are exact to f32, sums are kept in f32 and the result `[size[0], size[1], dim]`,
/// of `x`'s type, is rounded once. An element of weight 0 is not read, so that its NaN or infinity stays out. It gives what
/// `torch.nn.functional.interpolate` gives with a size. Mathematics: Keys, "Cubic Convolution Interpolation for Digital
/// Image Processing", 1981.
///
/// # Errors
///
/// [`Error::Argument`](crate::Error::Argument) where shapes or types do not fit, or both `align_corners` and `antialias`
/// are asked for.
///
/// Qwen3-VL's position embeddings, whose learnt grid is square, for an image of any number of patches, in the order in
/// which its tower has them, blocks of 2 by 2:
///
/// ```
/// use silicide::ops::{self, Resize};
/// use silicide::{DType, Device};
/// # fn main() -> silicide::Result<()> {
/// let device = Device::cpu();
/// let stream = &mut device.stream();
/// let (side, dim, [height, width]) = (2, 1, [4, 6]);
/// let table = device.tensor(&[0.0f32, 5.0, 30.0, 35.0], [side * side, dim])?;
///
/// let grid = table.reshape([side, side, dim])?;
/// let resized = ops::resize(stream, &grid, [height, width], Resize { align_corners: true, ..Resize::default() })?;
/// let blocks = resized.reshape([height / 2, 2, width / 2, 2, dim])?.permute(&[0, 2, 1, 3, 4])?;
/// let embeddings = ops::copy(stream, &blocks)?.reshape([height * width, dim])?;
///
/// let first = embeddings.to_vec::<f32>(stream)?[..8].to_vec();
/// let want = [0.0, 1.0, 10.0, 11.0, 2.0, 3.0, 12.0, 13.0];
/// assert!(first.iter().zip(want).all(|(e, w)| (e - w).abs() < 1e-5));
/// # Ok(())
/// # }
/// ```
pub fn resize(stream: &mut Stream, x: &Tensor, size: [usize; 2], options: Resize) -> Result<Tensor> {
    check_input(x)?;
    let out = stream.empty(x.dtype(), [size[0], size[1], x.dim(2)])?;
    resize_into(stream, x, options, &out)?;
    Ok(out)
}

/// [`resize`] into `out`, `[height, width, dim]` with any strides, whose height and width are those that are wanted.
pub fn resize_into(stream: &mut Stream, x: &Tensor, options: Resize, out: &Tensor) -> Result<()> {
    check_input(x)?;
    let fits = out.rank() == 3 && out.dim(2) == x.dim(2) && out.dtype() == x.dtype();
    check(OP, fits, || format!("out: got {out:?}, wanted {}[height, width, {}]", x.dtype(), x.dim(2)))?;
    check(OP, !(options.align_corners && options.antialias), || {
        "antialias: got it with align_corners, wanted one of them".into()
    })?;
    if out.elements() == 0 {
        return Ok(());
    }
    check(OP, x.elements() > 0, || format!("x: got {x:?}, wanted elements to make {out:?} of"))?;
    let axis = |axis: usize| Axis::new(x.shape()[axis], out.shape()[axis], options);
    let strides = |t: &Tensor| [0, 1, 2].map(|axis| t.strides()[axis] as u64);
    let params = Params {
        x_strides: strides(x),
        out_strides: strides(out),
        y: axis(0)?,
        x: axis(1)?,
        dim: size(OP, "dim", x.dim(2))?,
        pixels: size(OP, "out", out.dim(0) * out.dim(1))?,
        cubic: (options.filter == ResizeFilter::Bicubic).into(),
        antialias: options.antialias.into(),
    };
    let taps = params.y.most_taps() * params.x.most_taps();
    let launch = Launch::new(OP, &params).read(x).write(out).flops(2 * taps * out.elements());
    stream.launch(launch, float_entry!(x.dtype(), T => cpu::run::<T>), || {
        let n = packet(x.dtype());
        let aligned = packets_align(x.dim(2), n, &[Some(x), Some(out)]) && [x, out].iter().all(|t| t.strides()[2] == 1);
        let across = params.dim.div_ceil(EACH * if aligned { n as u32 } else { 1 });
        let blocks = across.div_ceil(ACROSS);
        Gpu {
            source: &SOURCE,
            defines: defines(aligned, params.y.is_short() && params.x.is_short()),
            entry: format!("resize_{}", x.dtype()),
            threadgroups: [params.pixels.div_ceil(PIXELS), blocks, 1],
            threads: [across.div_ceil(blocks), PIXELS, 1],
        }
    })
}

fn check_input(x: &Tensor) -> Result<()> {
    check(OP, x.rank() == 3 && x.dtype().is_float(), || {
        format!("x: got {x:?}, wanted [height, width, dim] of f32, f16 or bf16")
    })
}

const OP: &str = "resize";

/// Packets of a pixel that a thread makes, threads that a pixel has at most in a threadgroup, and pixels of one.
const EACH: u32 = 4;
const ACROSS: u32 = 16;
const PIXELS: u32 = 32;

/// What the kernel is compiled with: whether elements are packed, and whether places are 32 bits wide.
pub(super) fn defines(aligned: bool, short: bool) -> String {
    whole(aligned) + if short { "\n#define PLACE int" } else { "\n#define PLACE long" }
}

kernel_params! {
    /// Element `i` of an axis lies at `(i * step + start) / divisor` of the `from` elements there were, which is exact.
    /// Elements count that are less than `reach * width / divisor` away; the filter takes their distance over
    /// `width / divisor`.
    struct Axis {
        step: i64,
        start: i64,
        divisor: i64,
        width: i64,
        reach: i64,
        from: u32,
        to: u32,
    }
}

kernel_params! {
    /// Strides are elements by row, column and element of a pixel.
    struct Params {
        x_strides: [u64; 3],
        out_strides: [u64; 3],
        y: Axis,
        x: Axis,
        dim: u32,
        pixels: u32,
        cubic: u32,
        antialias: u32,
    }
}

impl Axis {
    fn new(from: usize, to: usize, options: Resize) -> Result<Axis> {
        // Products of two sizes and a small number stay within 64 bits.
        const MOST: usize = 1 << 29;
        check(OP, from.max(to) <= MOST, || format!("height and width: got {from} to {to}, wanted at most {MOST}"))?;
        let (n, m) = (from as i64, to as i64);
        let (step, start, divisor) = match options.align_corners {
            true => (n - 1, 0, (m - 1).max(1)),
            false => (2 * n, n - m, 2 * m),
        };
        let width = if options.antialias { divisor.max(2 * n) } else { divisor };
        let reach = if options.filter == ResizeFilter::Bicubic { 2 } else { 1 };
        Ok(Axis { step, start, divisor, width, reach, from: from as u32, to: to as u32 })
    }

    /// Whether 32 bits hold what places are computed of; of 64 a GPU divides slowly.
    fn is_short(&self) -> bool {
        let reach = (self.reach + 1) * self.width;
        i64::from(self.to) * self.step + reach + (i64::from(self.from) + 1) * self.divisor <= i64::from(i32::MAX)
    }

    /// At least as many as count for any element.
    fn most_taps(&self) -> usize {
        2 * (self.reach * self.width / self.divisor) as usize + 2
    }

    /// The elements that count for element `i`. Without antialiasing some may be past an edge, which stands for them.
    fn taps(&self, i: u32, antialias: u32) -> std::ops::Range<i64> {
        let at = i64::from(i) * self.step + self.start;
        let first = (at - self.reach * self.width).div_euclid(self.divisor) + 1;
        let end = -(-(at + self.reach * self.width)).div_euclid(self.divisor);
        if antialias == 0 { first..end } else { first.max(0)..end.min(self.from.into()) }
    }
}

pub(super) static SOURCE: KernelSource = KernelSource {
    name: "resize",
    params: &[Axis::DECLARATION, Params::DECLARATION],
    body: include_str!("kernel.metal"),
};
