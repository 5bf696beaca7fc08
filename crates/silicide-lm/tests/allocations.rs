//! A decode step allocates nothing on the CPU, in no thread, once the first steps have made room.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use silicide::device::CpuOptions;
use silicide::{DType, Device};
use silicide_lm::{GenerateOptions, LoadOptions, Model, SamplingOptions};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The folders of `oracle/tiny`: every family, MLX's formats and dense weights.
fn folders() -> Vec<PathBuf> {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../oracle/tiny");
    let folders = std::fs::read_dir(tiny).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<_> = folders.filter(|folder| folder.join("config.json").exists()).collect();
    folders.sort();
    assert!(folders.len() > 10);
    folders
}

/// Allocations in a hundred steps, after some that make room.
fn allocations(model: &Model, sampling: SamplingOptions) -> usize {
    let options =
        GenerateOptions { max_tokens: 110, sampling: Some(sampling), ignore_eos: true, ..GenerateOptions::default() };
    let mut tokens = model.generate(vec![3, 5, 7], options).unwrap().map(Result::unwrap);
    assert_eq!(tokens.by_ref().take(8).count(), 8);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    assert_eq!(tokens.by_ref().take(100).count(), 100);
    ALLOCATIONS.load(Ordering::Relaxed) - before
}

#[test]
fn a_decode_step_allocates_nothing() {
    // A thread makes room at the first task of a kind that it happens to get, so several threads may need more than one run.
    for (threads, runs) in [(1, 1), (2, 100)] {
        let device = Device::cpu_with(CpuOptions { threads, ..CpuOptions::default() });
        for folder in folders() {
            // Without a tokenizer, as the text of a token is a string of its own.
            let bare = tempfile::tempdir().unwrap();
            for file in ["config.json", "model.safetensors"] {
                std::fs::copy(folder.join(file), bare.path().join(file)).unwrap();
            }
            let drawn =
                SamplingOptions { temperature: 0.9, top_p: 0.9, repetition_penalty: 1.1, ..SamplingOptions::default() };
            for (dtype, sampling) in [(None, SamplingOptions::default()), (Some(DType::F32), drawn)] {
                let model = Model::load_with(bare.path(), &device, LoadOptions { dtype }).unwrap();
                let least = (0..runs).map(|_| allocations(&model, sampling.clone())).find(|&n| n == 0);
                assert!(least.is_some(), "{}, {dtype:?}, {threads} threads: steps allocate", folder.display());
            }
        }
    }
}
