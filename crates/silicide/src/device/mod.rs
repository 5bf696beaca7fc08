//! Where tensors live and work runs.

pub mod cpu;
