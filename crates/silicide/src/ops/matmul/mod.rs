//! Products with a weight matrix, dense or quantised.

pub mod cpu;
