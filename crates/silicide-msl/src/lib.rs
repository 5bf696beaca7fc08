//! Runs Metal Shading Language kernels on a CPU.
