//! The CPU: its threads and its instruction sets.

mod features;
mod pool;

pub use features::{Features, Level};
pub use pool::Pool;
