//! Operations.

pub mod rope_multi;
