//! Every kernel compiles for NVIDIA GPUs, on a machine without one.

use std::collections::BTreeSet;
use std::path::Path;

use super::*;
use crate::device::cuda;
use crate::kernels::KernelSource;
use crate::testing::quantized_formats;
use crate::{DType, MatrixFormat};

const SOURCES: &[&KernelSource] = &[
    &argmax::SOURCE,
    &attention::SOURCE,
    &binary::SOURCE,
    &cast::SOURCE,
    &causal_conv1d::SOURCE,
    &compare::SOURCE,
    &copy::SOURCE,
    &cumsum::SOURCE,
    &embedding::SOURCE,
    &expert_matmul::SOURCE,
    &expert_schedule::SOURCE,
    &fill::SOURCE,
    &gated_delta_gates::SOURCE,
    &gated_delta_rule::SOURCE,
    &gather::SOURCE,
    &glu::SOURCE,
    &hadamard_transform::SOURCE,
    &head_norm_rope_cache::SOURCE,
    &kv_quantize::SOURCE,
    &kv_write::SOURCE,
    &l2_norm::SOURCE,
    &layer_norm::SOURCE,
    &matmul::SOURCE,
    &matmul::NVIDIA,
    &matmul::wgmma::SOURCE,
    &matmul::peak::SOURCE,
    &matmul::peak::NVIDIA,
    &penalize::SOURCE,
    &reduce::SOURCE,
    &resize::SOURCE,
    &rms_norm::SOURCE,
    &rms_norm_gated::SOURCE,
    &rope::SOURCE,
    &rope_multi::SOURCE,
    &router::SOURCE,
    &sample::SOURCE,
    &select::SOURCE,
    &softmax::SOURCE,
    &sort::SOURCE,
    &top_k::SOURCE,
    &triangular_solve::SOURCE,
    &unary::SOURCE,
    &weighted_reduce::SOURCE,
];

/// What a source is compiled with: the formats of a matrix for those that read one, for the router numbers of experts.
fn defines(source: &KernelSource) -> BTreeSet<String> {
    if source.name == "attention" {
        let types =
            [(DType::F32, DType::F32), (DType::F32, DType::F16), (DType::F16, DType::F16), (DType::BF16, DType::BF16)];
        let forms = [(4, 4), (8, 1), (8, 4), (16, 2), (32, 1)];
        let all = types.into_iter().zip(forms).chain(types.into_iter().zip(forms.into_iter().rev()));
        return all
            .map(|((q, cache), (lanes, heads))| attention::defines(q, cache, lanes, heads, lanes != 16))
            .collect();
    }
    if source.name == "causal_conv1d" {
        return (2..=8).map(causal_conv1d::defines).collect();
    }
    if source.name == "gated_delta_rule" {
        return [1, 33, 64, 128, 192, 256].map(gated_delta_rule::defines).into();
    }
    if source.name == "hadamard_transform" {
        return (5..14).map(|log| hadamard_transform::defines(1 << log)).collect();
    }
    if source.name == "kv_quantize" {
        return [64, 128, 256, 512].map(kv_quantize::defines).into();
    }
    if source.name == matmul::wgmma::SOURCE.name {
        return DType::FLOATS[1..].iter().copied().map(matmul::wgmma::defines).collect();
    }
    if source.name == matmul::peak::NVIDIA.name {
        return ["", "#define WGMMA"].map(String::from).into();
    }
    if source.name == "router" {
        return [1, 4, 128].map(|n| format!("#define PER_LANE {n}")).into();
    }
    if !["\"matrix.h\"", "\"product.h\""].iter().any(|header| source.body.contains(header)) {
        return [String::new()].into();
    }
    let dense = DType::FLOATS.map(MatrixFormat::Dense);
    let formats = quantized_formats().into_iter().chain(dense);
    // One type beside each format: which is beside which changes nothing in a reader.
    let types = if source.name == matmul::NVIDIA.name { &DType::FLOATS[1..] } else { &DType::FLOATS[..] };
    let scalars = types.iter().copied().cycle();
    formats
        .map(matmul::reader)
        .collect::<BTreeSet<_>>()
        .into_iter()
        .zip(scalars)
        .map(|(reader, scalar)| matmul::defines(&reader, scalar, scalar == DType::BF16))
        .collect()
}

#[test]
fn every_kernel_is_among_the_sources() {
    let folders = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops")).unwrap();
    let folders = folders.map(|entry| entry.unwrap().path()).filter(|path| path.join("kernel.metal").exists());
    let folders: BTreeSet<_> = folders.map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
    let metal = SOURCES.iter().map(|source| source.name).filter(|name| !name.contains('/'));
    assert_eq!(folders, metal.map(str::to_owned).collect());
}

#[test]
fn every_kernel_compiles_for_nvidia() {
    if !cuda::is_present() {
        assert!(std::env::var_os("SILICIDE_REQUIRE_NVRTC").is_none(), "NVRTC is not on the library path");
        return eprintln!("NVRTC is not here, left out");
    }
    let mut architectures = ["sm_80", "sm_90a"].into_iter().cycle();
    for source in SOURCES {
        let all = defines(source);
        for defines in &all {
            let path = source.path();
            let options = silicide_msl::CudaOptions { name: &path, ..Default::default() };
            let (text, entries) = silicide_msl::cuda_library(&source.assemble(defines), 256, &options)
                .unwrap_or_else(|e| panic!("{} {defines}: {e}", source.name));
            assert!(!entries.is_empty(), "{} has no kernel", source.name);
            // The many formats take turns, the others are compiled for both.
            for architecture in architectures.by_ref().take(if all.len() > 1 { 1 } else { 2 }) {
                // Hopper's own instructions.
                let hopper = source.name == matmul::wgmma::SOURCE.name || defines.contains("WGMMA");
                let architecture = if hopper { "sm_90a" } else { architecture };
                if let Err(e) = cuda::compile(&text, architecture) {
                    panic!("{} for {architecture} with {defines:?}:\n{e}", source.name);
                }
            }
        }
    }
}
