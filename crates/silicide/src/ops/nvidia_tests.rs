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
    &attention::nvidia::DECODE,
    &attention::nvidia::PREFILL,
    &attention::TILED,
    &binary::SOURCE,
    &cast::SOURCE,
    &batched_matmul::SOURCE,
    &batched_matmul::NVIDIA,
    &causal_conv1d::SOURCE,
    &compare::SOURCE,
    &copy::SOURCE,
    &cumsum::SOURCE,
    &embedding::SOURCE,
    &expert_matmul::SOURCE,
    &expert_matmul::NVIDIA,
    &expert_schedule::SOURCE,
    &fill::SOURCE,
    &gated_delta_gates::SOURCE,
    &gated_delta_rule::SOURCE,
    &gated_delta_rule::nvidia::SOURCE,
    &gather::SOURCE,
    &glu::SOURCE,
    &hadamard_transform::SOURCE,
    &head_norm_rope_cache::SOURCE,
    &kv_quantize::SOURCE,
    &kv_quantize::nvidia::MANY,
    &kv_quantize_affine::SOURCE,
    &kv_write::SOURCE,
    &l2_norm::SOURCE,
    &layer_norm::SOURCE,
    &matmul::SOURCE,
    &matmul::NVIDIA,
    &matmul::few::SOURCE,
    &matmul::groups::SOURCE,
    &matmul::one::SOURCE,
    &matmul::wgmma::SOURCE,
    &matmul::peak::SOURCE,
    &matmul::peak::NVIDIA,
    &quantized_attention::SOURCE,
    &quantized_attention::nvidia::DECODE,
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

fn layout(ring: bool) -> CacheLayout<'static> {
    if ring { CacheLayout::Ring } else { CacheLayout::Rows }
}

/// What a source is compiled with: the formats of a matrix for those that read one, for the router numbers of experts.
fn defines(source: &KernelSource) -> BTreeSet<String> {
    if source.name.starts_with("attention") {
        let types =
            [(DType::F32, DType::F32), (DType::F32, DType::F16), (DType::F16, DType::F16), (DType::BF16, DType::BF16)];
        let forms = [(4, 4), (8, 1), (8, 4), (16, 2), (32, 1)];
        let all = types.into_iter().zip(forms).chain(types.into_iter().zip(forms.into_iter().rev()));
        let plain = all.map(|((q, kv), (lanes, heads))| attention::Variant {
            q,
            kv,
            lanes,
            heads,
            whole: lanes != 16,
            cache: "",
            mask: None,
        });
        let dtype = DType::BF16;
        let one = attention::Variant { q: dtype, kv: dtype, lanes: 8, heads: 4, whole: true, cache: "", mask: None };
        let caches = ["#define RING\n", "#define PAGES\n"].map(|cache| attention::Variant { cache, ..one });
        let masks = [DType::Bool, DType::F32, DType::F16, DType::BF16];
        let masks = masks.map(|mask| attention::Variant { mask: Some(mask), ..one });
        if source.name.ends_with(".cu") {
            let variants = [DType::F16, DType::BF16].map(|dtype| attention::Variant { q: dtype, kv: dtype, ..one });
            let variants = variants.into_iter().chain(caches);
            let shapes = [(64, 8), (80, 1), (128, 4), (128, 16), (256, 6), (192, 12)];
            let shapes = shapes.map(|(dim, heads)| match source.name == attention::nvidia::PREFILL.name {
                true => {
                    // Few and many queries.
                    let form = attention::nvidia::Prefill::of(dim, heads as f32 / 4.0, 227 << 10);
                    form.expect("it has the memory").defines()
                }
                false => attention::nvidia::Decode::shaped(dim, heads, 227 << 10).defines(),
            });
            return variants.cycle().zip(shapes).map(|(variant, shape)| variant.defines() + &shape).collect();
        }
        let tiled = source.name == attention::TILED.name;
        let all = plain.chain(caches).chain(masks).filter(|variant| !tiled || variant.has_tiles());
        return all.map(|variant| variant.defines()).collect();
    }
    if source.name == "batched_matmul" {
        let pairs = DType::FLOATS.iter().zip([DType::BF16, DType::F16, DType::F32]);
        return pairs.map(|(&a, b)| batched_matmul::defines(a, b, a == DType::F32)).collect();
    }
    if source.name == batched_matmul::NVIDIA.name {
        return [DType::F16, DType::BF16].map(|dtype| batched_matmul::defines(dtype, dtype, true)).into();
    }
    if source.name == "causal_conv1d" {
        let types = DType::FLOATS.iter().cycle();
        return (2..=8)
            .zip(types)
            .map(|(width, &dtype)| causal_conv1d::defines(dtype, width, 4, width % 2 == 0))
            .collect();
    }
    if source.name == "gated_delta_rule" {
        return [1, 33, 64, 128, 192, 256].map(gated_delta_rule::defines).into();
    }
    if source.name == gated_delta_rule::nvidia::SOURCE.name {
        let forms = [(DType::F16, 48, 65), (DType::F16, 128, 64), (DType::BF16, 128, 64), (DType::BF16, 128, 65)];
        let form = |(dtype, dk, tokens)| gated_delta_rule::nvidia::Chunked::shaped(dtype, dk, tokens, 227 << 10);
        return forms.map(|shape| form(shape).expect("it has the memory").defines()).into();
    }
    if source.name == "hadamard_transform" {
        return (5..14).map(|log| hadamard_transform::defines(1 << log)).collect();
    }
    if source.name == "head_norm_rope_cache" {
        return [(true, true, 1), (true, true, 4), (false, false, 4)]
            .map(|(whole, in_lanes, heads)| head_norm_rope_cache::defines(whole, in_lanes, heads))
            .into();
    }
    if source.name == "kv_quantize" {
        return [64, 128, 256, 512].map(|dim| kv_quantize::defines(dim, layout(dim == 128), dim < 256)).into();
    }
    if source.name == kv_quantize::nvidia::MANY.name {
        return kv_quantize::nvidia::some_defines();
    }
    if source.name == "kv_quantize_affine" {
        return [(4, 32), (4, 64), (8, 32), (8, 128)]
            .map(|(bits, group)| kv_quantize_affine::defines(bits, group, layout(bits == 4), group == 64))
            .into();
    }
    if source.name == "layer_norm" {
        return [true, false].map(|whole| layer_norm::defines(whole, 3, whole, !whole)).into();
    }
    if source.name == matmul::wgmma::SOURCE.name {
        return matmul::wgmma::some_defines();
    }
    if source.name == matmul::peak::NVIDIA.name {
        return ["", "#define WGMMA"].map(String::from).into();
    }
    if source.name == "kv_write" {
        let caches = ["", "#define RING\n", "#define PAGES\n"].into_iter().zip([true, true, false]);
        return caches.map(|(cache, whole)| format!("{cache}{}", rows::whole(whole))).collect();
    }
    if source.name.starts_with("quantized_attention") {
        return quantized_attention::some_defines(source.name.ends_with(".cu"));
    }
    if source.name == "resize" {
        return [(true, true), (false, false)].map(|(whole, short)| resize::defines(whole, short)).into();
    }
    if source.name == "router" {
        return [1, 4, 128].map(|n| format!("#define PER_LANE {n}")).into();
    }
    let functions = match source.name {
        "binary" => Binary::NAMES,
        "compare" => Compare::NAMES,
        "glu" => Gate::NAMES,
        "reduce" => Reduce::NAMES,
        "unary" => Unary::NAMES,
        _ => &[],
    };
    if let [first, ..] = functions {
        let define = |aligned, name: &str| format!("{}\n#define FUNCTION {name}", rows::whole(aligned));
        return functions.iter().map(|name| define(true, name)).chain([define(false, first)]).collect();
    }
    let includes = |headers: &[&str]| headers.iter().any(|h| source.body.contains(&format!("\"{h}\"")));
    if !includes(&["codes.h", "matrix.h", "product.h", "stages.h"]) {
        let packed = includes(&["packet.h", "rows.h", "rope.h"]);
        return if packed { [true, false].map(rows::whole).into() } else { [String::new()].into() };
    }
    let dense = DType::FLOATS.map(MatrixFormat::Dense);
    // Two forms share the formats out.
    let taken = |format: &MatrixFormat| match source.name {
        name if name == matmul::few::SOURCE.name => matmul::few::bits(*format).is_some(),
        name if name == matmul::groups::SOURCE.name => matmul::few::bits(*format).is_none(),
        name if name == matmul::one::SOURCE.name => matches!(format, MatrixFormat::Quantized(..)),
        _ => true,
    };
    let formats = quantized_formats().into_iter().chain(dense).filter(taken);
    // One type beside each format: which is beside which changes nothing in a reader.
    let types = if source.name.ends_with(".cu") { &DType::FLOATS[1..] } else { &DType::FLOATS[..] };
    let scalars = types.iter().copied().cycle();
    let readers = formats.map(matmul::reader).collect::<BTreeSet<_>>();
    let plain =
        readers.iter().zip(scalars).map(|(reader, scalar)| matmul::defines(reader, scalar, scalar == DType::BF16));
    // Some of them for two weights.
    let gates = plain.clone().step_by(4).zip(Gate::NAMES.iter().cycle());
    let gated = gates.map(|(defines, gate)| format!("{defines}\n#define FUNCTION {gate}"));
    let both = includes(&["experts.h", "products.h", "stages.h"]);
    plain.chain(gated.filter(|_| both)).collect()
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
fn every_shared_kernel_compiles_for_nvidia() {
    compile(|source| !source.is_for_nvidia());
}

#[test]
fn every_kernel_of_its_own_compiles_for_nvidia() {
    compile(KernelSource::is_for_nvidia);
}

/// Metal's language is C++14 with types of its own, and what stands for it here takes more.
#[test]
fn shared_kernels_keep_to_what_metal_has() {
    for source in SOURCES.iter().filter(|source| !source.is_for_nvidia()) {
        let text = source.assemble("");
        for newer in ["if constexpr", "[&]", "[=]", "constexpr auto", "decltype(auto)"] {
            assert!(!text.contains(newer), "{} has {newer}", source.path());
        }
    }
}

/// NVIDIA's own kernels stand where they outrun the shared ones, as `silicide bench gains` found them to.
#[test]
fn every_kernel_of_its_own_has_shown_its_gain() {
    // What measures the rate of an instruction has none to gain.
    let measured = |source: &&&KernelSource| source.is_for_nvidia() && source.name != matmul::peak::NVIDIA.name;
    for source in SOURCES.iter().filter(measured) {
        let (folder, _) = source.name.split_once('/').unwrap();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops").join(folder).join("gains.md");
        let report = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let own = format!("`{}`", source.name);
        let gains: Vec<f64> = report
            .lines()
            .filter(|line| line.contains(&own))
            .map(|line| line.trim_end_matches('|').rsplit('|').next().unwrap().trim().parse().unwrap())
            .collect();
        assert!(!gains.is_empty(), "{} has no line in {}", source.name, path.display());
        assert!(gains.iter().all(|&gain| gain > 1.0), "{}: {gains:?}", source.name);
    }
}

fn compile(chosen: fn(&KernelSource) -> bool) {
    if !cuda::is_present() {
        assert!(std::env::var_os("SILICIDE_REQUIRE_NVRTC").is_none(), "NVRTC is not on the library path");
        return eprintln!("NVRTC is not here, left out");
    }
    let mut architectures = ["sm_80", "sm_90a"].into_iter().cycle();
    for source in SOURCES.iter().filter(|source| chosen(source)) {
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
