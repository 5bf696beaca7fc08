//! Runs Metal Shading Language kernels on a Linux CPU, thread by thread.
//!
//! A kernel source that Apple's compiler takes is compiled, unmodified, by clang 19: as C++ for OpenCL, whose address spaces,
//! vectors and `half` are those of Metal, with a strict shim for the Metal standard library. It is then run as a GPU would
//! run it. Every thread of a threadgroup has a stack of its own and is switched at barriers and simdgroup operations; a
//! simdgroup has 32 lanes; threadgroups share the CPU's cores.
//!
//! With [`CompileOptions::checks`] each access is checked, and a broken rule is an [`Error::Fault`] with the line, the
//! threadgroup and the thread: accesses outside of a view ([`FaultKind::OutOfRange`]), writes through read-only bindings,
//! misaligned addresses, data races between threads and between threadgroups, barriers that not all threads reach,
//! integer divisions by zero, loops without end. Threadgroup memory starts as NaN. A [`Schedule::seed`] shuffles the order
//! of threadgroups and threads, so that what depends on luck shows.
//!
//! With [`CompileOptions::nvidia`] a kernel may use what NVIDIA GPUs have beside Metal's language, tensor cores and asynchronous
//! copies; a copy is done when its thread waits for it, and no sooner.
//!
//! # Example
//!
//! ```
//! use silicide_msl::{BufferArg, CompileOptions, Error, Launch, Library, Schedule};
//!
//! let source = r#"
//!     #include <metal_stdlib>
//!     using namespace metal;
//!
//!     template <typename T>
//!     [[kernel]] void scale(
//!         device const T* x [[buffer(0)]],
//!         device T* y [[buffer(1)]],
//!         constant float& by [[buffer(2)]],
//!         uint i [[thread_position_in_grid]]) {
//!         y[i] = T(float(x[i]) * by);
//!     }
//!     template [[host_name("scale_float")]] [[kernel]] decltype(scale<float>) scale<float>;
//! "#;
//! let library = match Library::compile(source, &CompileOptions::default()) {
//!     Err(Error::NoCompiler { .. }) => return Ok(()), // The message says how to get one.
//!     other => other?,
//! };
//! let kernel = library.kernel("scale_float")?;
//!
//! let mut x = [1.0f32; 64];
//! let mut y = [0.0f32; 64];
//! let view = |values: &mut [f32], writable| BufferArg {
//!     ptr: values.as_mut_ptr().cast(),
//!     len: size_of_val(values),
//!     writable,
//! };
//! let by = 2.5f32.to_ne_bytes();
//! let mut launch = Launch {
//!     kernel: &kernel,
//!     buffers: vec![(0, view(&mut x, false)), (1, view(&mut y, true))],
//!     bytes: vec![(2, &by)],
//!     threadgroup_memory: vec![],
//!     threadgroups: [2, 1, 1],
//!     threads: [32, 1, 1],
//!     schedule: Schedule { seed: Some(7), ..Schedule::default() },
//! };
//! // SAFETY: the buffers are valid and used by nothing else meanwhile.
//! unsafe { launch.run()? };
//! assert_eq!(y, [2.5; 64]);
//!
//! // A third threadgroup leaves the buffers.
//! launch.threadgroups = [3, 1, 1];
//! // SAFETY: as before.
//! let Err(Error::Fault(fault)) = (unsafe { launch.run() }) else { panic!("no fault") };
//! assert_eq!((fault.line, fault.threadgroup), (Some(11), [2, 0, 0]));
//! # Ok::<(), Error>(())
//! ```
//!
//! # What is not found
//!
//! Errors of Apple's compiler and its fast math; reads of device memory that nothing wrote; an access that misses its view
//! and hits another one, where one of the two is larger than 1 MiB or they overlap; races between threadgroups through views
//! of which the kernel writes none. A `device` pointer where `constant` is wanted compiles, the reverse does not. Textures,
//! 64-bit atomics and vectors of `bool` are not supported.

mod abi;
mod bindings;
pub mod cache;
mod collective;
mod compile;
mod context;
mod copies;
mod cuda;
mod error;
mod group;
mod launch;
mod lex;
mod library;
mod memory;
mod preprocess;
mod random;
mod rewrite;
mod tokens;

pub use cuda::{CUDA_OPTIONS, CudaKernel, CudaOptions, cuda_kernel, cuda_library};
pub use error::{Error, Fault, FaultKind};
pub use launch::{
    BufferArg, Launch, MAX_BINDINGS, MAX_INLINE_BYTES, MAX_NVIDIA_THREADGROUP_BYTES, MAX_THREADGROUP_BYTES,
    MAX_THREADS, Schedule,
};
pub use library::{Binding, BindingKind, CompileOptions, Constant, Kernel, KernelInfo, Library};

/// Looks for the compiler that [`Library::compile`] needs.
///
/// # Errors
/// [`Error::NoCompiler`], saying what was looked for and how to get one.
pub fn find_compiler() -> Result<(), Error> {
    compile::clang().map(drop)
}
