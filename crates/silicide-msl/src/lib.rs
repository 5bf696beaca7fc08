//! Runs Metal Shading Language kernels on a CPU.

mod abi;
mod bindings;
mod collective;
mod compile;
mod context;
mod error;
mod group;
mod launch;
mod lex;
mod library;
mod memory;
mod random;
mod rewrite;

pub use error::{Error, Fault, FaultKind};
pub use launch::{BufferArg, Launch, MAX_BINDINGS, MAX_INLINE_BYTES, MAX_THREADGROUP_BYTES, MAX_THREADS, Schedule};
pub use library::{Binding, BindingKind, CompileOptions, Constant, Kernel, KernelInfo, Library};

/// Looks for the compiler that [`Library::compile`] needs.
///
/// # Errors
/// [`Error::NoCompiler`], saying what was looked for and how to get one.
pub fn find_compiler() -> Result<(), Error> {
    compile::clang().map(drop)
}
