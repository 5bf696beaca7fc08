//! What NVIDIA GPUs have beside Metal's language.

mod common;

use common::{Job, bytes, have_clang, rejected};
use half::{bf16, f16};
use silicide_msl::{CompileOptions, CudaOptions, Error, FaultKind, Library, MAX_NVIDIA_THREADGROUP_BYTES, cuda_kernel};

/// Compiles kernel `f`, whose body is given and begins at line 9.
fn kernel(body: &str) -> Library {
    let options = CompileOptions { nvidia: true, ..CompileOptions::default() };
    Library::compile(&source(body), &options).unwrap_or_else(|error| panic!("{error}"))
}

fn source(body: &str) -> String {
    format!(
        "#include <metal_stdlib>\nusing namespace metal;\nkernel void f(\n    device const uint* x [[buffer(0)]],\n    \
         device float* y [[buffer(1)]],\n    threadgroup uint* s [[threadgroup(0)]],\n    \
         uint t [[thread_index_in_threadgroup]],\n    uint lane [[thread_index_in_simdgroup]]) {{\n{body}\n}}\n"
    )
}

/// 16 times 16 by 16 times 8, whose pairs lie as the PTX manual has them for mma.m16n8k16.
#[test]
fn tensor_cores_multiply() {
    if !have_clang() {
        return;
    }
    let number = |i: usize| ((i * 37 + 11) % 29) as f32 / 8.0 - 1.5;
    for (name, bits) in
        [("half", (|x| f16::from_f32(x).to_bits()) as fn(f32) -> u16), ("bfloat", |x| bf16::from_f32(x).to_bits())]
    {
        let (a, b) = (|row: usize, k: usize| number(row * 16 + k), |k: usize, n: usize| number(300 + k * 8 + n));
        let pair = |low: f32, high: f32| u32::from(bits(low)) | u32::from(bits(high)) << 16;
        let mut words = Vec::new();
        for lane in 0..32 {
            let (g, t) = (lane / 4, lane % 4 * 2);
            for (row, k) in [(g, t), (g + 8, t), (g, t + 8), (g + 8, t + 8)] {
                words.push(pair(a(row, k), a(row, k + 1)));
            }
            for k in [t, t + 8] {
                words.push(pair(b(k, g), b(k + 1, g)));
            }
        }
        let library = kernel(&format!(
            "uint a[4], b[2];\nfor (uint i = 0; i < 6; ++i) (i < 4 ? a[i] : b[i - 4]) = x[t * 6 + i];\n\
             float d[4] = {{1, 2, 3, 4}};\nnvidia::multiply<{name}>(d, a, b);\nfor (uint i = 0; i < 4; ++i) y[t * 4 + i] = d[i];"
        ));
        let got: Vec<f32> = Job::new(&library, "f", 1, 32).memory(0, 16).output(&[&words], 128);
        for (lane, got) in got.chunks(4).enumerate() {
            for (i, &got) in got.iter().enumerate() {
                let (row, n) = (lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2);
                let want = (0..16).fold(i as f32 + 1.0, |sum, k| sum + a(row, k) * b(k, n));
                assert_eq!(got, want, "{name} {row} {n}");
            }
        }
        // Half a simdgroup.
        let fault = Job::new(&library, "f", 1, 16).memory(0, 16).fault(&mut [&mut bytes(&words), &mut vec![0; 512]]);
        assert_eq!(fault.kind, FaultKind::Divergence, "{fault}");
    }
}

/// A group is there when the thread has waited for it, and no sooner.
#[test]
fn copies_end_when_they_are_waited_for() {
    if !have_clang() {
        return;
    }
    let library = kernel(
        "device const uint* from = x + t * 8;\nulong to = (ulong)(s + t * 8);\n\
         nvidia::copy(to, from, 8, 16);\nnvidia::end_copies();\nnvidia::copy(to + 16, from + 4, 16, 16);\nnvidia::end_copies();\n\
         y[t * 3] = as_type<float>(s[t * 8 + 1]);\nnvidia::wait_for_copies(1);\n\
         y[t * 3 + 1] = s[t * 8 + 1] + s[t * 8 + 2] + (s[t * 8 + 7] == 0xffffffff ? 1000 : 0);\n\
         nvidia::wait_for_copies(0);\ny[t * 3 + 2] = s[t * 8 + 7];",
    );
    let words: Vec<u32> = (0..256).collect();
    let got: Vec<f32> = Job::new(&library, "f", 1, 32).memory(0, 1024).output(&[&words], 96);
    for (t, got) in got.chunks(3).enumerate() {
        assert!(got[0].is_nan());
        assert_eq!(got[1..], [(t * 8 + 1001) as f32, (t * 8 + 7) as f32]);
    }
}

#[test]
fn copies_keep_the_rules() {
    if !have_clang() {
        return;
    }
    for (body, kind, line, words) in [
        ("if (t == 3)\nnvidia::copy((ulong)s, x + 254, 16, 16);", FaultKind::Misaligned, 10, "no multiple of 16"),
        ("if (t == 3) nvidia::copy((ulong)(s + 1), x, 4, 8);", FaultKind::Misaligned, 9, "threadgroup(0)"),
        (
            "if (t == 3) nvidia::copy((ulong)s, x + 256, 4, 16);",
            FaultKind::OutOfRange,
            9,
            "buffer(0) `x`, which has 1024",
        ),
        ("if (t == 3) nvidia::copy((ulong)(s + 256), x, 16, 16);", FaultKind::OutOfRange, 9, "threadgroup(0)"),
        // Another thread reads what was waited for, without a barrier.
        (
            "nvidia::copy((ulong)(s + t * 4), x + t * 4, 16, 16);\nnvidia::end_copies();\nnvidia::wait_for_copies(0);\n\
             y[t] = s[(t ^ 1) * 4];",
            FaultKind::Race,
            0,
            "no barrier",
        ),
        // What others still read is asked to be overwritten.
        (
            "s[t] = t;\nthreadgroup_barrier(mem_flags::mem_threadgroup);\ny[t] = s[t ^ 4];\n\
             if (t % 4 == 0) nvidia::copy((ulong)(s + t), x, 16, 16);",
            FaultKind::Race,
            0,
            "no barrier",
        ),
    ] {
        let library = kernel(body);
        let job = Job::new(&library, "f", 1, 64).memory(0, 1024).seed(1);
        let fault = job.fault(&mut [&mut vec![0; 1024], &mut vec![0; 256]]);
        assert_eq!(fault.kind, kind, "{fault}");
        assert!(line == 0 || fault.line == Some(line), "{fault}");
        assert!(fault.to_string().contains(words), "{fault}");
    }
    // No byte of the source is read.
    let library = kernel(
        "nvidia::copy((ulong)(s + t * 4), x + 1024, 0, 16);\nnvidia::end_copies();\nnvidia::wait_for_copies(0);\ny[t] = s[t * 4];",
    );
    let got: Vec<f32> = Job::new(&library, "f", 1, 32).memory(0, 512).output(&[&[1u32; 4]], 32);
    assert_eq!(got, [0.0; 32]);
}

#[test]
fn only_where_it_is_asked_for() {
    if !have_clang() {
        return;
    }
    assert!(rejected(&source("nvidia::end_copies();")).contains("nvidia"));
    let run = |library: &Library, bytes: usize| {
        Job::new(library, "f", 1, 32).memory(0, bytes).run(&mut [&mut vec![0; 4], &mut vec![0; 128]])
    };
    let nvidia = kernel("y[t] = 0;");
    run(&nvidia, MAX_NVIDIA_THREADGROUP_BYTES).unwrap();
    let Err(Error::Usage(message)) = run(&nvidia, MAX_NVIDIA_THREADGROUP_BYTES + 16) else { panic!("no error") };
    assert!(message.contains("an NVIDIA GPU allows 232448"), "{message}");
    let Err(Error::Usage(message)) = run(&common::compile(&source("y[t] = 0;")), 1 << 16) else { panic!("no error") };
    assert!(message.contains("Metal allows 32768"), "{message}");
}

/// The launch's own threadgroup memory is CUDA's, of which a kernel has one piece.
#[test]
fn threadgroup_arguments_reach_cuda() {
    let kernel = cuda_kernel(&source("y[t] = s[t];"), "f", 32, &CudaOptions::default()).unwrap();
    assert!(kernel.text.contains("extern __shared__ uint4 __msl_dynamic[]; threadgroup uint * s ="), "{}", kernel.text);
    let second = source("y[t] = s[t];").replace("threadgroup(0)", "threadgroup(1)");
    let error = cuda_kernel(&second, "f", 32, &CudaOptions::default()).unwrap_err().to_string();
    assert!(error.contains("[[threadgroup(1)]]: an NVIDIA GPU has one such argument, 0"), "{error}");
}
