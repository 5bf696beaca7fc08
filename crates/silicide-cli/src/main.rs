//! The `silicide` command line.

fn main() {}
