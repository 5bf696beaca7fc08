#![no_main]

// Each target walks one of the formats.
#[allow(dead_code)]
#[path = "../../crates/silicide/tests/formats/walk.rs"]
mod walk;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| drop(walk::Target::Gguf.walk(bytes)));
