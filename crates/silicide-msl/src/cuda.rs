//! Metal Shading Language as CUDA C++, for NVRTC.

use crate::rewrite::{Complaint, Dialect, Entry, rewrite, slots, symbol};
use crate::{Constant, Error, preprocess};

/// The shim in the order of its parts.
const SHIM: &str = concat!(
    include_str!("../shim/cuda/types.h"),
    include_str!("../shim/cuda/vectors.h"),
    include_str!("../shim/cuda/math.h"),
    include_str!("../shim/cuda/simd.h"),
    include_str!("../shim/cuda/matrix.h"),
    include_str!("../shim/cuda/end.h"),
);

const MACROS: &str = include_str!("../shim/macros.h");

/// One entry point as a CUDA program.
#[derive(Clone, Debug)]
pub struct CudaKernel {
    /// A translation unit that NVRTC takes without headers, with [`CUDA_OPTIONS`].
    pub text: String,
    /// The function's name in it.
    pub symbol: String,
    /// The function's one argument begins with so many addresses, those of `[[buffer(0)]]` and on; the bytes of the `constant` reference
    /// that the kernel takes come behind them.
    pub buffers: u32,
}

/// What NVRTC must be told beside the architecture.
pub const CUDA_OPTIONS: [&str; 4] =
    ["--std=c++17", "--device-as-default-execution-space", "--no-display-error-number", "--disable-warnings"];

/// Brings the kernel `entry` of a Metal source to CUDA.
///
/// A launch has at most `threads` threads in a threadgroup. Simdgroups are warps, of 32 threads. A kernel takes at most
/// one `constant` reference, whose bytes come with the launch; pointers to `constant` are buffers.
///
/// # Errors
/// [`Error::Compile`] with the line where the source is not understood; [`Error::Usage`] where it has no such entry.
///
/// ```
/// use silicide_msl::{CudaOptions, cuda_kernel};
///
/// let source = "#include <metal_stdlib>\nusing namespace metal;\n\
///     kernel void twice(device float* x [[buffer(0)]], uint i [[thread_position_in_grid]]) { x[i] *= 2; }";
/// let kernel = cuda_kernel(source, "twice", 32, &CudaOptions::default())?;
/// assert_eq!((kernel.symbol.as_str(), kernel.buffers), ("msl_twice", 1));
/// # Ok::<(), silicide_msl::Error>(())
/// ```
pub fn cuda_kernel(source: &str, entry: &str, threads: u32, options: &CudaOptions<'_>) -> Result<CudaKernel, Error> {
    let (text, entries) = translate(source, Some(entry), threads, options)?;
    let kernel = entries.iter().find(|k| k.name == entry);
    let kernel = kernel.ok_or_else(|| Error::usage(format!("{} has no kernel \"{entry}\"", options.name)))?;
    Ok(CudaKernel { text, symbol: symbol(entry), buffers: slots(&kernel.parameters) })
}

/// All kernels of a Metal source as one CUDA program, and their names.
///
/// # Errors
/// [`Error::Compile`] with the line where the source is not understood.
pub fn cuda_library(source: &str, threads: u32, options: &CudaOptions<'_>) -> Result<(String, Vec<String>), Error> {
    let (text, entries) = translate(source, None, threads, options)?;
    Ok((text, entries.into_iter().map(|entry| entry.name).collect()))
}

fn translate(
    source: &str,
    entry: Option<&str>,
    threads: u32,
    options: &CudaOptions<'_>,
) -> Result<(String, Vec<Entry>), Error> {
    let name = options.name;
    let complaint = |(line, message): Complaint| Error::Compile { message: format!("{name}:{line}: error: {message}") };
    let plain = preprocess::preprocess(source, &format!("{MACROS}{}\n", options.defines)).map_err(complaint)?;
    let rewritten = rewrite(&plain, Dialect::Cuda { entry }, options.constants).map_err(complaint)?;
    if let Some(kernel) = rewritten.kernels.iter().find(|k| k.parameters.iter().filter(|p| p.is_inline()).count() > 1) {
        return Err(complaint((
            kernel.line,
            format!("kernel `{}` takes more than one constant reference", kernel.name),
        )));
    }
    let text = format!(
        "#define __msl_threads {threads}\n#line 1 \"metal_stdlib\"\n{SHIM}#line 1 \"{name}\"\n{}\n",
        rewritten.text
    );
    Ok((text, rewritten.kernels))
}

/// How a source is read.
#[derive(Clone, Copy, Debug)]
pub struct CudaOptions<'a> {
    /// Lines put before the source.
    pub defines: &'a str,
    /// Values of `[[function_constant(index)]]` variables.
    pub constants: &'a [(u32, Constant)],
    /// What messages call the source.
    pub name: &'a str,
}

impl Default for CudaOptions<'_> {
    fn default() -> Self {
        CudaOptions { defines: "", constants: &[], name: "kernel.metal" }
    }
}
