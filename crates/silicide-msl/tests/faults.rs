//! Each broken rule is found, at its line and in its thread.

mod common;

use common::{Job, bytes, compile, have_clang, rejected};
use silicide_msl::{BindingKind, CompileOptions, Constant, Error, Fault, FaultKind, Library};

/// Compiles one kernel `f`, whose body is given and begins at line 10.
fn kernel(body: &str) -> Library {
    compile(&source(body))
}

fn source(body: &str) -> String {
    format!(
        "#include <metal_stdlib>\nusing namespace metal;\nkernel void f(\n    device float* a [[buffer(0)]],\n    \
         device const float* b [[buffer(1)]],\n    constant int* n [[buffer(2)]],\n    \
         threadgroup float* s [[threadgroup(0)]],\n    uint t [[thread_position_in_threadgroup]],\n    \
         uint lane [[thread_index_in_simdgroup]]) {{\n{body}\n}}\n"
    )
}

/// Runs 2 threadgroups of 64 threads over 64 floats each.
fn fault(body: &str) -> Fault {
    let library = kernel(body);
    let (mut a, mut b, mut n) = (bytes(&[0f32; 64]), bytes(&[1f32; 64]), bytes(&[64i32, 0]));
    let mut found = None;
    for seed in 0..4 {
        let job = Job::new(&library, "f", 2, 64).memory(0, 256).seed(seed);
        let fault = job.fault(&mut [&mut a, &mut b, &mut n]);
        println!("{fault}");
        assert_eq!(fault.seed, Some(seed));
        if let Some(kind) = found {
            assert_eq!(kind, fault.kind);
        }
        found = Some(fault.kind);
    }
    let job = Job::new(&library, "f", 2, 64).memory(0, 256);
    job.fault(&mut [&mut a, &mut b, &mut n])
}

fn runs(body: &str) {
    let library = kernel(body);
    for seed in 0..8 {
        let (mut a, mut b, mut n) = (bytes(&[0f32; 128]), bytes(&[1f32; 64]), bytes(&[64i32, 0]));
        let job = Job::new(&library, "f", 1, 64).memory(0, 256).seed(seed);
        job.run(&mut [&mut a, &mut b, &mut n]).unwrap_or_else(|error| panic!("{error}"));
    }
}

fn expect(body: &str, kind: FaultKind, line: u32, thread: u32, words: &str) {
    let fault = fault(body);
    println!("{fault}");
    assert_eq!((fault.kind, fault.line, fault.thread), (kind, Some(line), [thread, 0, 0]), "{fault}");
    assert!(fault.to_string().contains(words), "{fault}");
    assert_eq!(fault.kernel, "f");
}

#[test]
fn reads_and_writes_out_of_range() {
    if !have_clang() {
        return;
    }
    expect(
        "float v = 1;\nif (t == 5) a[64] = v;",
        FaultKind::OutOfRange,
        11,
        5,
        "byte 256 of buffer(0) `a`, which has 256",
    );
    expect("if (t == 7) a[t] = b[-1];", FaultKind::OutOfRange, 10, 7, "read of 4 byte(s) at byte -4 of buffer(1) `b`");
    expect("\n\nif (t == 3) a[t] = n[2];", FaultKind::OutOfRange, 12, 3, "buffer(2) `n`");
    expect("if (t == 9) s[64] = 1;", FaultKind::OutOfRange, 10, 9, "threadgroup(0) `s`");
    expect("if (t == 9) *(device float4*)(a + 63) = 1;", FaultKind::OutOfRange, 10, 9, "write of 16");
}

#[test]
fn neighbouring_views_are_told_apart() {
    if !have_clang() {
        return;
    }
    let library = kernel("a[t] = b[t + 1];");
    let (mut all, mut n) = (bytes(&[1f32; 128]), bytes(&[0i32]));
    let start = all.as_mut_ptr();
    let kernel = library.kernel("f").expect("f");
    let view =
        |offset: usize, writable| silicide_msl::BufferArg { ptr: start.wrapping_add(offset), len: 256, writable };
    let launch = silicide_msl::Launch {
        kernel: &kernel,
        // b ends where a begins.
        buffers: vec![(0, view(256, true)), (1, view(0, false))],
        bytes: vec![(2, &n)],
        threadgroup_memory: vec![(0, 16)],
        threadgroups: [1, 1, 1],
        threads: [64, 1, 1],
        schedule: Default::default(),
    };
    // SAFETY: the views are in `all`.
    let error = unsafe { launch.run() }.expect_err("a fault");
    assert!(error.to_string().contains("byte 256 of buffer(1) `b`"), "{error}");
    n.clear();
}

#[test]
fn arrays_of_known_size() {
    if !have_clang() {
        return;
    }
    expect("float v[4] = {1, 2, 3, 4};\nif (t == 2) a[t] = v[n[0]];", FaultKind::IndexOutOfBounds, 11, 2, "index 64");
    expect("threadgroup float v[8];\nif (t == 2) v[n[0] / 8] = 1;", FaultKind::IndexOutOfBounds, 11, 2, "index 8");
    expect("if (t == 4) a[t] = n[0] / n[1];", FaultKind::Division, 10, 4, "division by zero");
}

#[test]
fn memory_that_is_bound_for_reading() {
    if !have_clang() {
        return;
    }
    expect("if (t == 1) *(device float*)(b + t) = 1;", FaultKind::WriteToReadOnly, 10, 1, "buffer(1) `b`");
    let library = kernel("a[t] = 1;");
    let mut job = Job::new(&library, "f", 1, 64).memory(0, 256);
    job.read_only = vec![0];
    let (mut a, mut b, mut n) = (bytes(&[0f32; 64]), bytes(&[1f32; 64]), bytes(&[64i32]));
    assert_eq!(job.fault(&mut [&mut a, &mut b, &mut n]).kind, FaultKind::WriteToReadOnly);
}

#[test]
fn misaligned_accesses() {
    if !have_clang() {
        return;
    }
    expect("if (t == 1) *(device float2*)(a + 1) = 1;", FaultKind::Misaligned, 10, 1, "multiple of 8");
    expect("if (t == 1) *(device float4*)(a + 2) = 1;", FaultKind::Misaligned, 10, 1, "multiple of 16");
    runs("if (t == 1) *(device packed_float4*)(a + 1) = packed_float4(1);");
}

#[test]
fn races() {
    if !have_clang() {
        return;
    }
    let race = |body| {
        let fault = fault(body);
        println!("{fault}");
        assert_eq!(fault.kind, FaultKind::Race, "{fault}");
        fault
    };
    assert!(race("s[t] = 1;\na[t] = s[t ^ 1];").message.contains("threadgroup(0) `s`"));
    assert_eq!(race("s[0] = 1;").line, Some(10));
    // Lanes of another simdgroup are not ordered by a simdgroup barrier.
    race("s[t] = 1;\nsimdgroup_barrier(mem_flags::mem_threadgroup);\nfloat v = s[t ^ 32];\nif (v > 3) s[t] = v;");
    // A barrier for the other kind of memory does not help.
    race("s[t] = 1;\nthreadgroup_barrier(mem_flags::mem_device);\nfloat v = s[t ^ 1];\nif (v > 3) s[t] = v;");
    // Device memory within a threadgroup, and between two of them.
    race("a[t] = 1;\nfloat v = a[t ^ 1];\nif (v > 3) a[t] = v;");
    race("if (t == 0) a[0] = 1;");
    runs("s[t] = 1;\nthreadgroup_barrier(mem_flags::mem_threadgroup);\na[t] = s[t ^ 1];");
    runs("s[t] = 1;\nsimdgroup_barrier(mem_flags::mem_threadgroup);\na[t] = s[t ^ 1];");
    runs("a[t] = 1;\nthreadgroup_barrier(mem_flags::mem_device);\na[t] = a[t] + 1;");
    // Neighbouring halves and bytes are apart.
    runs("((device half*)a)[t] = half(1);");
    runs("((device uchar*)a)[t] = 1;\n((threadgroup uchar*)s)[t] = 2;");
}

#[test]
fn races_between_workers() {
    if !have_clang() {
        return;
    }
    let library = kernel("if (t == 0) a[3] = 1;");
    let (mut a, mut b, mut n) = (bytes(&[0f32; 64]), bytes(&[1f32; 64]), bytes(&[64i32]));
    let mut job = Job::new(&library, "f", 64, 32).memory(0, 256);
    job.schedule.workers = 4;
    let fault = job.fault(&mut [&mut a, &mut b, &mut n]);
    assert_eq!(fault.kind, FaultKind::Race, "{fault}");
}

#[test]
fn barriers_that_not_all_reach() {
    if !have_clang() {
        return;
    }
    expect(
        "if (t == 40) return;\nthreadgroup_barrier(mem_flags::mem_none);\na[t] = 1;",
        FaultKind::Divergence,
        11,
        0,
        "thread [40, 0, 0], which has finished",
    );
    expect(
        "if (t < 32) threadgroup_barrier(mem_flags::mem_none);\nelse {\nthreadgroup_barrier(mem_flags::mem_none); a[t] = 1; }",
        FaultKind::Divergence,
        10,
        0,
        "thread [32, 0, 0], which waits at line 12",
    );
    expect(
        "if (t == 33) a[0] = 1; else\nsimdgroup_barrier(mem_flags::mem_none);\n",
        FaultKind::Divergence,
        11,
        32,
        "thread [33, 0, 0], which has finished",
    );
    // Two places in one simdgroup: which lanes meet is not defined by the language alone.
    expect(
        "float v = b[t];\nif (lane < 8) v = simd_sum(v);\nv += simd_sum(v);\nif (v < 0) a[t] = v;",
        FaultKind::Divergence,
        11,
        0,
        "waits at line 12",
    );
    runs("if (lane < 8) a[t] = simd_sum(b[t]);\nthreadgroup_barrier(mem_flags::mem_none);");
    runs("if (t < 32) a[t] = simd_sum(b[t]); else a[t] = simd_max(b[t]);");
}

#[test]
fn kernels_that_never_end() {
    if !have_clang() {
        return;
    }
    let library = kernel("while (b[0] == 1) threadgroup_barrier(mem_flags::mem_none);");
    let (mut a, mut b, mut n) = (bytes(&[0f32; 64]), bytes(&[1f32; 64]), bytes(&[64i32]));
    let mut job = Job::new(&library, "f", 1, 64).memory(0, 256);
    job.schedule.steps = Some(100_000);
    assert_eq!(job.fault(&mut [&mut a, &mut b, &mut n]).kind, FaultKind::Endless);
}

#[test]
fn memory_starts_as_nan() {
    if !have_clang() {
        return;
    }
    let library = kernel("threadgroup float u[64];\na[t] = u[t] + s[t];");
    let (mut a, mut b, mut n) = (bytes(&[0f32; 64]), bytes(&[1f32; 64]), bytes(&[64i32]));
    Job::new(&library, "f", 1, 64).memory(0, 256).run(&mut [&mut a, &mut b, &mut n]).expect("no fault");
    assert!(common::values::<f32>(&a).iter().all(|v| v.is_nan()));
}

#[test]
fn launches_that_do_not_fit() {
    if !have_clang() {
        return;
    }
    let library = kernel("threadgroup float big[8000];\nbig[t] = 1;\na[t] = big[t];");
    assert_eq!(library.kernel("f").expect("f").info().static_threadgroup_bytes, 32000);
    let (mut a, mut b, mut n) = (bytes(&[0f32; 64]), bytes(&[1f32; 64]), bytes(&[64i32]));
    let mut usage = |job: &Job<'_>, buffers: usize, words: &str| {
        let mut all = [&mut a, &mut b, &mut n];
        let error = job.run(&mut all[..buffers]).expect_err(words);
        assert!(matches!(error, Error::Usage(_)) && error.to_string().contains(words), "{error}");
    };
    let job = Job::new(&library, "f", 1, 64);
    usage(&job, 3, "threadgroup(0) `s` has no memory");
    usage(&job.clone().memory(0, 1024), 3, "33024 bytes of threadgroup memory");
    usage(&job.clone().memory(0, 17), 3, "multiple of 16");
    usage(&job.clone().memory(0, 16), 2, "buffer(2) `n` is not bound");
    usage(&job.clone().memory(0, 16).inline(2, 1).inline(31, 1), 2, "indices are 0 to 30");
    usage(&job.clone().memory(0, 16).inline(2, [0u8; 4097]), 2, "4097 inline bytes");
    usage(&job.clone().memory(0, 16).inline(2, 1), 3, "bound twice");
    usage(&Job::new(&library, "f", 1, 1025).memory(0, 16), 3, "1025");
    usage(&Job::new(&library, "f", 0, 32).memory(0, 16), 3, "grid");
    let missing = library.kernel("g").expect_err("no such kernel").to_string();
    assert!(missing.contains("\"g\"") && missing.contains("\"f\""), "{missing}");
}

#[test]
fn what_metal_rejects() {
    if !have_clang() {
        return;
    }
    let at = |body: &str, line: u32, words: &str| {
        let message = rejected(&source(body));
        let first = message.lines().find(|l| l.contains("error")).unwrap_or("");
        assert!(first.starts_with(&format!("kernel.metal:{line}:")) && message.contains(words), "{message}");
    };
    at("\ndevice float* p = s;", 11, "threadgroup float");
    at("thread float* p = a;", 10, "device float");
    at("device float* p = b;", 10, "device const float");
    at("device const int* p = n;", 10, "constant int");
    at("b[0] = 1;", 10, "read-only");
    at("n[0] = 1;", 10, "read-only");
    at("double d = 1;", 10, "double");
    at("a[0] = erf(b[0]);", 10, "erf");
    at("a[0] = float4(1).q;", 10, "q");
    at("float4 v = float4(1, 2, 3);", 10, "");
    at("float* p = a;", 10, "address space");
    at("half h = bfloat(1.0f);", 10, "");
    at("a[0] = max(1, 1u);", 10, "max");
    at("a[0] = exp(bfloat(1.0f));", 10, "exp");
    let message = rejected("kernel void f(device float* a [[buffer(0)]], uint n) {}");
    assert!(message.contains("kernel.metal:1") && message.contains("`n` has no attribute"), "{message}");
    let message =
        rejected("kernel void f(\nuint2 t [[thread_position_in_grid]],\nuint g [[threadgroup_position_in_grid]]) {}");
    assert!(message.contains("kernel.metal:3") && message.contains("width"), "{message}");
    let message = rejected("kernel void f(device float* a [[buffer(31)]]) {}");
    assert!(message.contains("0 to 30"), "{message}");
    let message = rejected("int x;\nint y = ;");
    assert!(message.contains("kernel.metal:2:"), "{message}");
}

#[test]
fn function_constants_and_macros() {
    if !have_clang() {
        return;
    }
    let source = "constant bool twice [[function_constant(0)]];\nconstant float by [[function_constant(3)]];\n\
                  constant int unset [[function_constant(4)]];\nconstant bool has = is_function_constant_defined(unset);\n\
                  kernel void f(device float* a [[buffer(0)]], device float* c [[buffer(1), function_constant(twice)]],\n\
                  constant int& d [[buffer(5), function_constant(has)]],\n\
                  uint t [[thread_position_in_grid]]) {\n  if (twice) { a[t] = c[t] * by; } else { a[t] = has ? 9 : SEVEN; }\n}";
    let compile = |twice| {
        let options = CompileOptions {
            function_constants: vec![(0, Constant::Bool(twice)), (3, Constant::Float(2.5))],
            defines: vec![("SEVEN".into(), "7".into())],
            ..Default::default()
        };
        Library::compile(source, &options).unwrap_or_else(|error| panic!("{error}"))
    };
    let (library, plain) = (compile(true), compile(false));
    let (mut a, mut c) = (bytes(&[0f32; 2]), bytes(&[2f32, 4.0]));
    Job::new(&library, "f", 1, 2).run(&mut [&mut a, &mut c]).expect("no fault");
    assert_eq!(common::values::<f32>(&a), [5.0, 10.0]);
    assert_eq!(plain.kernel("f").expect("f").info().bindings.len(), 1);
    Job::new(&plain, "f", 1, 2).run(&mut [&mut a]).expect("no fault");
    assert_eq!(common::values::<f32>(&a), [7.0, 7.0]);
    let message = rejected(source);
    assert!(message.contains("function constant 0 (`twice`) has no value"), "{message}");
}

#[test]
fn buffers_without_numbers_take_those_that_are_free() {
    if !have_clang() {
        return;
    }
    let library = Library::compile(
        "kernel void f(device float* a, threadgroup float* s [[threadgroup(0)]], constant float& by [[buffer(1)]],\n\
         uint t [[thread_position_in_grid]], const device float* c) { s[t] = c[t]; a[t] = s[t] * by; }",
        &CompileOptions::default(),
    )
    .unwrap_or_else(|error| panic!("{error}"));
    let bindings = library.kernel("f").expect("f").info().bindings.clone();
    let bindings: Vec<_> = bindings.iter().map(|b| (b.name.as_str(), b.index)).collect();
    assert_eq!(bindings, [("a", 0), ("s", 0), ("by", 1), ("c", 2)]);
    let (mut a, mut by, mut c) = (bytes(&[0f32; 2]), bytes(&[3f32]), bytes(&[2f32, 4.0]));
    Job::new(&library, "f", 1, 2).memory(0, 16).run(&mut [&mut a, &mut by, &mut c]).expect("no fault");
    assert_eq!(common::values::<f32>(&a), [6.0, 12.0]);
}

/// References, pointers and threadgroup memory that a function constant leaves out, or not.
#[test]
fn optional_parameters() {
    if !have_clang() {
        return;
    }
    let source = "constant bool has [[function_constant(0)]];\nstruct P { float by; int n; };\n\
                  kernel void f(device float* a [[buffer(0)]],\n\
                  device const float& b [[buffer(1), function_constant(has)]],\n\
                  constant P& p [[buffer(2), function_constant(has)]],\n\
                  threadgroup float* s [[threadgroup(0), function_constant(has)]],\n\
                  uint t [[thread_position_in_grid]]) {\n  if (has) { s[t] = b; }\n\
                  a[t] = has ? s[t] * p.by + p.n : LOOKS ? p.by : -1.0f;\n}";
    let compile = |has, looks: bool| {
        let options = CompileOptions {
            function_constants: vec![(0, Constant::Bool(has))],
            defines: vec![("LOOKS".into(), looks.to_string())],
            ..Default::default()
        };
        Library::compile(source, &options).unwrap_or_else(|error| panic!("{error}"))
    };
    let (mut a, mut b) = (bytes(&[0f32; 2]), bytes(&[4f32]));
    let there = compile(true, false);
    let kinds: Vec<_> = there.kernel("f").expect("f").info().bindings.iter().map(|b| b.kind).collect();
    let device = |writable| BindingKind::Device { writable };
    assert_eq!(kinds, [device(true), device(false), BindingKind::Constant { bytes: 8 }, BindingKind::Threadgroup]);
    let job = Job::new(&there, "f", 1, 2).memory(0, 16);
    job.clone().inline(2, [2.5f32, f32::from_bits(3)]).run(&mut [&mut a, &mut b]).expect("no fault");
    assert_eq!(common::values::<f32>(&a), [13.0, 13.0]);
    // What is asked for must be bound, and in full.
    let message = job.run(&mut [&mut a, &mut b]).expect_err("nothing is bound to p").to_string();
    assert!(message.contains('2') && message.contains('p'), "{message}");
    let message = job.clone().inline(2, 1f32).run(&mut [&mut a, &mut b]).expect_err("half of p is bound").to_string();
    assert!(message.contains('8') && message.contains('4'), "{message}");

    let absent = compile(false, false);
    assert_eq!(absent.kernel("f").expect("f").info().bindings.len(), 1);
    Job::new(&absent, "f", 1, 2).run(&mut [&mut a]).expect("no fault");
    assert_eq!(common::values::<f32>(&a), [-1.0, -1.0]);
    // A kernel that looks all the same is found out.
    let error = Job::new(&compile(false, true), "f", 1, 2).run(&mut [&mut a]).expect_err("p is not there");
    let Error::Fault(fault) = error else { panic!("{error}") };
    assert_eq!((fault.kind, fault.line), (FaultKind::OutOfRange, Some(9)));
}

#[test]
fn the_cache_is_used_and_survives_damage() {
    if !have_clang() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let options = CompileOptions { cache_dir: Some(folder.path().join("deep/er")), ..Default::default() };
    let source = source("a[t] = b[t] + n[0];");
    let check = |library: &Library| {
        let (mut a, mut b, mut n) = (bytes(&[0f32; 64]), bytes(&[1f32; 64]), bytes(&[64i32]));
        Job::new(library, "f", 1, 64).memory(0, 16).run(&mut [&mut a, &mut b, &mut n]).expect("no fault");
        assert_eq!(common::values::<f32>(&a), [65.0; 64]);
    };
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| check(&Library::compile(&source, &options).expect("compiles")));
        }
    });
    let files = || -> Vec<_> {
        let all = std::fs::read_dir(folder.path().join("deep/er")).expect("the cache");
        all.map(|entry| entry.expect("an entry").path()).collect()
    };
    assert_eq!(files().len(), 1, "{:?}", files());
    let path = files().remove(0);
    let whole = std::fs::read(&path).expect("the library");
    let first = std::fs::metadata(&path).and_then(|m| m.modified()).expect("a time");
    check(&Library::compile(&source, &options).expect("from the cache"));
    assert_eq!(std::fs::metadata(&path).and_then(|m| m.modified()).expect("a time"), first);
    // A new file, as a loaded one must not change.
    std::fs::remove_file(&path).expect("removed");
    std::fs::write(&path, &whole[..whole.len() - 100]).expect("written");
    check(&Library::compile(&source, &options).expect("compiled again"));
    assert_eq!(std::fs::read(&path).expect("the library").len(), whole.len());
}
