//! Good files, damaged at random: no panic, and no more memory than the file's size warrants.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use proptest::prelude::*;

use crate::make::{good_config, good_gguf, good_safetensors};
use crate::walk::Target;

/// Counts the bytes that each thread holds, and the most it ever held.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    HELD.set(HELD.get() + bytes);
    PEAK.set(PEAK.get().max(HELD.get()));
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most bytes that `f` holds at a time.
fn peak(f: impl FnOnce()) -> isize {
    let before = HELD.get();
    PEAK.set(before);
    f();
    PEAK.get() - before
}

#[derive(Clone, Debug)]
enum Damage {
    Byte(usize, u8),
    Number(usize, u64),
    Cut(usize, usize),
    Repeat(usize, usize, usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    let numbers = prop_oneof![
        any::<u64>(),
        0..300u64,
        Just(u64::MAX),
        Just(1 << 31),
        Just(1 << 32),
        Just(1 << 62),
        (0..64u32).prop_map(|bit| u64::MAX >> bit),
    ];
    prop_oneof![
        (any::<usize>(), any::<u8>()).prop_map(|(at, b)| Damage::Byte(at, b)),
        (any::<usize>(), numbers).prop_map(|(at, n)| Damage::Number(at, n)),
        (any::<usize>(), 0..40usize).prop_map(|(at, n)| Damage::Cut(at, n)),
        (any::<usize>(), 0..200usize, 1..20usize).prop_map(|(at, n, times)| Damage::Repeat(at, n, times)),
    ]
}

fn apply(bytes: &mut Vec<u8>, damage: &Damage) {
    let len = bytes.len();
    let range = |at: usize, n: usize| {
        let at = at % (len + 1);
        at..(at + n).min(len)
    };
    match *damage {
        Damage::Byte(at, b) => bytes[range(at, 1)].fill(b),
        Damage::Number(at, n) => {
            let range = range(at, 8);
            let len = range.len();
            bytes[range].copy_from_slice(&n.to_le_bytes()[..len]);
        }
        Damage::Cut(at, n) => drop(bytes.drain(range(at, n))),
        Damage::Repeat(at, n, times) => {
            let range = range(at, n);
            let piece = bytes[range.clone()].repeat(times);
            bytes.splice(range.start..range.start, piece);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn damaged_files_do_no_harm(which in 0..3usize, damage in prop::collection::vec(damage(), 1..6)) {
        let (target, mut bytes) = [
            (Target::Safetensors, good_safetensors()),
            (Target::Gguf, good_gguf().bytes()),
            (Target::Config, good_config()),
        ][which].clone();
        damage.iter().for_each(|d| apply(&mut bytes, d));
        let peak = peak(|| drop(target.walk(&bytes)));
        // A JSON tree is larger than its text by its nature, and its size is capped.
        let allowed = bytes.len() as isize * if target == Target::Config { 100 } else { 16 } + 16384;
        prop_assert!(peak <= allowed, "{target:?}: {peak} bytes held for a file of {}", bytes.len());
    }
}
