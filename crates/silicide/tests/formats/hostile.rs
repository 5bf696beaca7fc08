//! Files that are wrong, each in its own way, and what is said about them.
//!
//! The same files, committed under `fuzz/corpus`, start the fuzzers. After adding a case, write them anew:
//! `cargo test -p silicide --test formats -- --ignored write_corpus`.

use std::fs;
use std::path::{Path, PathBuf};

use silicide::DType;
use silicide::formats::Mapped;
use silicide::formats::gguf::GgufFile;

use crate::make::{self, Gguf, array, good_config, good_gguf, good_safetensors, safetensors, string};
use crate::walk::Target;

/// A file by name, and the start of its error after the path; empty for a file that is good.
struct Case(Target, &'static str, Vec<u8>, &'static str);

fn cases() -> Vec<Case> {
    let mut cases = safetensors_cases();
    cases.extend(gguf_cases());
    cases.extend(config_cases());
    cases
}

fn safetensors_cases() -> Vec<Case> {
    let case = |name, bytes, error| Case(Target::Safetensors, name, bytes, error);
    let of = |header: &str| safetensors(header, &[0; 8]);
    let one = |dtype: &str, shape: &str, span: &str| {
        of(&format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{span}}}}}"#))
    };
    let two = |a: &str, b: &str| {
        of(&format!(
            r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":{a}}},"b":{{"dtype":"U8","shape":[4],"data_offsets":{b}}}}}"#
        ))
    };
    vec![
        case("good", good_safetensors(), ""),
        case("no-tensors", of("{}  "), ""),
        case("hole", two("[0,4]", "[4,8]"), ""),
        case(
            "nan-values",
            safetensors(r#"{"w.scales":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, &[0xFF; 8]),
            "",
        ),
        case("unknown-dtype", one("F3_E1M1", "[5]", "[0,2]"), ""),
        case("four-bit", one("F4", "[4,4]", "[0,8]"), ""),
        case("empty", vec![], "header: a file of 0 bytes is too short"),
        case("short-length", vec![1, 2, 3], "header: a file of 3 bytes is too short"),
        case(
            "header-past-end",
            [&100u64.to_le_bytes()[..], b"{}"].concat(),
            "header: is 100 bytes long by its own account, at most 2",
        ),
        case(
            "header-huge",
            [&u64::MAX.to_le_bytes()[..], b"{}"].concat(),
            "header: is 18446744073709551615 bytes long",
        ),
        case(
            "header-not-utf8",
            safetensors("{\"\u{e9}\":1}", &[]).into_iter().filter(|&b| b != 0xC3).collect(),
            "header: ",
        ),
        case("header-array", of("[]"), "header: invalid type: sequence, expected an object of tensors"),
        case("header-trailing", of("{} x"), "header: trailing characters"),
        case("deep-json", of(&format!(r#"{{"w":{}"#, r#"{"a":"#.repeat(300))), "w: "),
        case("deep-unknown-field", of(&format!(r#"{{"w":{{"x":{}"#, "[".repeat(300))), "w: EOF while parsing a list"),
        case("metadata-number", of(r#"{"__metadata__":{"a":1}}"#), "__metadata__: invalid type: integer `1`"),
        case("metadata-twice", of(r#"{"__metadata__":{},"__metadata__":{}}"#), "__metadata__: is there twice"),
        case("metadata-key-twice", of(r#"{"__metadata__":{"a":"1","a":"2"}}"#), r#"__metadata__: "a" is there twice"#),
        case(
            "name-twice",
            of(
                r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#,
            ),
            "a: is there twice",
        ),
        case("name-empty", of(r#"{"":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#), "tensor name: is empty"),
        case(
            "name-nul",
            of(r#"{"a\u0000b":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#),
            r#"tensor name: "a\0b" has control characters"#,
        ),
        case("name-escape", of(r#"{"\u001b[2J":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#), "tensor name: "),
        case(
            "field-twice",
            of(r#"{"w":{"dtype":"U8","dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#),
            "w: duplicate field `dtype`",
        ),
        case("field-missing", of(r#"{"w":{"dtype":"U8","shape":[0]}}"#), "w: missing field `data_offsets`"),
        case("overlap", two("[0,4]", "[3,7]"), "b: bytes 116..120 overlap those of \"a\", 113..117"),
        case(
            "truncated",
            good_safetensors().split_last().map(|(_, rest)| rest.to_vec()).unwrap_or_default(),
            "a.weight: takes bytes 233 to 241, the file has 240: is it whole?",
        ),
        case("past-end", one("U8", "[9]", "[0,9]"), "w: takes bytes 61 to 70, the file has 69: is it whole?"),
        case("offsets-reversed", one("U8", "[4]", "[4,0]"), "w: data_offsets [4, 0] are out of order"),
        case(
            "offsets-overflow",
            one("U8", "[0]", "[18446744073709551615,18446744073709551615]"),
            "w: data_offsets [18446744073709551615, 18446744073709551615] overflow",
        ),
        case("offsets-negative", one("U8", "[4]", "[-4,0]"), "w: invalid value: integer `-4`"),
        case("offsets-three", one("U8", "[4]", "[0,4,8]"), "w: "),
        case("shape-mismatch", one("F32", "[3]", "[0,8]"), "w: data_offsets span 8 bytes, f32 [3] takes 12"),
        case(
            "shape-overflow",
            one("F32", "[4294967296,4294967296]", "[0,8]"),
            "w: shape [4294967296, 4294967296] overflows",
        ),
        case(
            "shape-overflow-empty",
            one("F32", "[4294967296,4294967296,0]", "[0,0]"),
            "w: shape [4294967296, 4294967296, 0] overflows",
        ),
        case(
            "shape-bytes-overflow",
            one("F32", "[4611686018427387904]", "[0,0]"),
            "w: shape [4611686018427387904] overflows",
        ),
        case("shape-float", one("F32", "[1.5]", "[0,8]"), "w: invalid type: floating point"),
        case("shape-rank", one("U8", "[1,1,1,1,1,1,1,1,1]", "[0,1]"), "w: shape has 9 dimensions, at most 8"),
        case("four-bit-odd", one("F4", "[3]", "[0,2]"), "w: data_offsets span 2 bytes, F4 [3] takes 2"),
    ]
}

fn gguf_cases() -> Vec<Case> {
    let case = |name, file: Gguf, error| Case(Target::Gguf, name, file.bytes(), error);
    let raw = |name, bytes: &[u8], error| Case(Target::Gguf, name, bytes.to_vec(), error);
    let with = |change: fn(&mut Gguf)| {
        let mut file = good_gguf();
        change(&mut file);
        file
    };
    let one = |dims: &[u64], type_id, offset| Gguf::new().tensor("w", dims, type_id, offset).data(64);
    let deep = |levels| (1..levels).fold(array(9, 0, &[]), |inner, _| array(9, 1, &inner));
    vec![
        case("good", good_gguf(), ""),
        case("version-2", with(|f| f.version = 2), ""),
        case("no-tensors", Gguf::new(), ""),
        case("unknown-type", one(&[7], 4_000_000_000, 32), ""),
        case("nested-8", Gguf::new().pair("a", 9, &deep(8)), ""),
        case("string-not-utf8", Gguf::new().pair("a", 8, &[2, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFE]), ""),
        raw("empty", b"", "magic: takes 4 bytes and the file ends after 0"),
        raw("magic", b"GGML\x03\0\0\0", "magic: is \"GGML\", wanted \"GGUF\""),
        case("version-1", with(|f| f.version = 1), "version: is 1, wanted 2 or 3"),
        case("version-big-endian", with(|f| f.version = 3 << 24), "version: the file is big-endian"),
        case("tensor-count-huge", with(|f| f.tensor_count = u64::MAX), "tensor name: is empty"),
        case(
            "metadata-count-huge",
            with(|f| f.metadata_count = u64::MAX),
            "metadata key 6: takes 562949953421312 bytes",
        ),
        case("key-empty", Gguf::new().pair("", 0, &[0]), "metadata key: is empty"),
        case("key-control", Gguf::new().pair("a\n", 0, &[0]), "metadata key: \"a\\n\" has control characters"),
        case("key-twice", Gguf::new().pair("a", 0, &[0]).pair("a", 0, &[0]), "a: is there twice in the metadata"),
        case(
            "key-huge",
            with(|f| f.tables[..8].copy_from_slice(&u64::MAX.to_le_bytes())),
            "metadata key 0: takes 18446744073709551615 bytes",
        ),
        case("kind-unknown", Gguf::new().pair("a", 13, &[0]), "a: has kind 13, wanted 0 to 12"),
        case("bool-2", Gguf::new().pair("a", 7, &[2]), "a: a bool is neither 0 nor 1"),
        case("string-huge", Gguf::new().pair("a", 8, &[0xFF; 8]), "a: takes 18446744073709551615 bytes"),
        case("array-huge", Gguf::new().pair("a", 9, &array(0, 1 << 40, &[])), "a: takes 1099511627776 bytes"),
        case(
            "array-overflow",
            Gguf::new().pair("a", 9, &array(12, u64::MAX, &[])),
            "a: 18446744073709551615 f64 overflow",
        ),
        case("strings-huge", Gguf::new().pair("a", 9, &array(8, u64::MAX, &string("x"))), "a: takes"),
        case("arrays-huge", Gguf::new().pair("a", 9, &array(9, u64::MAX, &array(0, 0, &[]))), "a: "),
        case("nested-9", Gguf::new().pair("a", 9, &deep(9)), "a: arrays are nested more than 8 deep"),
        case("nested-1000", Gguf::new().pair("a", 9, &deep(1000)), "a: arrays are nested more than 8 deep"),
        case(
            "alignment-0",
            Gguf::new().pair("general.alignment", 4, &[0; 4]),
            "general.alignment: is 0, wanted a power of two",
        ),
        case(
            "alignment-48",
            Gguf::new().pair("general.alignment", 4, &48u32.to_le_bytes()),
            "general.alignment: is 48, wanted",
        ),
        case(
            "alignment-string",
            Gguf::new().pair("general.alignment", 8, &string("32")),
            "general.alignment: is \"32\", wanted an integer",
        ),
        case(
            "alignment-huge",
            Gguf::new().pair("general.alignment", 10, &(1u64 << 63).to_le_bytes()).tensor("w", &[1], 0, 0),
            "w: takes bytes 9223372036854775808",
        ),
        case("name-twice", Gguf::new().tensor("w", &[1], 0, 0).tensor("w", &[1], 0, 32).data(64), "w: is there twice"),
        case("name-empty", Gguf::new().tensor("", &[1], 0, 0).data(64), "tensor name: is empty"),
        case(
            "name-huge",
            with(|f| {
                let n = f.tables.len();
                f.tables.truncate(n - 31);
                f.tables.extend([0xFF; 31])
            }),
            "name of tensor 2: takes",
        ),
        case("rank-9", one(&[1; 9], 0, 0), "w: has 9 dimensions, at most 8"),
        case(
            "rank-huge",
            with(|f| {
                f.tables.truncate(0);
                f.metadata_count = 0;
                f.tables.extend(string("w"));
                f.tables.extend([0xFF; 4])
            }),
            "w: has 4294967295 dimensions",
        ),
        case("dims-overflow", one(&[1 << 32, 1 << 32], 0, 0), "w: f32 [4294967296, 4294967296] at offset 0 overflows"),
        case(
            "dims-overflow-empty",
            one(&[1 << 40, 1 << 40, 0], 0, 0),
            "w: f32 [0, 1099511627776, 1099511627776] at offset 0 overflows",
        ),
        case("bytes-overflow", one(&[1 << 62], 0, 0), "w: f32 [4611686018427387904] at offset 0 overflows"),
        case("offset-overflow", one(&[1], 0, u64::MAX - 31), "w: takes bytes 18446744073709551615"),
        case(
            "offset-past-end",
            one(&[1], 0, 1 << 20),
            "w: takes bytes 1048640 to 1048644, the file has 128: is it whole?",
        ),
        case("offset-unaligned", one(&[1], 0, 8), "w: offset 8 is not a multiple of the alignment, 32"),
        raw("truncated", &good_gguf().bytes()[..100], "llama.block_count: takes 4 bytes and the file ends after 2"),
        case("data-past-end", one(&[17], 0, 0), "w: takes bytes 64 to 132, the file has 128: is it whole?"),
        case("row-not-blocks", one(&[48, 1], 2, 0), "w: rows have 48 elements, Q4_0 wants a multiple of 32"),
        case(
            "overlap",
            Gguf::new().tensor("a", &[9], 0, 0).tensor("b", &[1], 0, 32).data(64),
            "b: bytes 128..132 overlap those of \"a\", 96..132",
        ),
    ]
}

fn config_cases() -> Vec<Case> {
    let case = |name, json: &str, error| Case(Target::Config, name, json.as_bytes().to_vec(), error);
    let block = |name, json: &str, error| case(name, &format!(r#"{{"quantization": {json}}}"#), error);
    let foreign = |name, json: &str, error| case(name, &format!(r#"{{"quantization_config": {json}}}"#), error);
    vec![
        Case(Target::Config, "good", good_config(), ""),
        case("null", r#"{"quantization": null, "quantization_config": null}"#, ""),
        foreign("mxfp4", r#"{"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}"#, ""),
        foreign("nvfp4", r#"{"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}"#, ""),
        case("empty", "", "file: EOF while parsing"),
        case("truncated", r#"{"quantization": {"bits": 4,"#, "quantization: EOF while parsing"),
        case("deep", &"[".repeat(10_000), "file: recursion limit exceeded"),
        case("deep-object", &r#"{"a":"#.repeat(200), "a.a.a."),
        case("key-twice", r#"{"quantization": {"bits": 4, "bits": 8}}"#, "quantization.bits: is there twice"),
        case("number-huge", r#"{"a": 1e999}"#, "a: number out of range"),
        block("array", "[]", "quantization: is [], wanted an object"),
        block("bits-missing", r#"{"group_size": 64}"#, "quantization.bits: is missing"),
        block("group-missing", r#"{"bits": 4}"#, "quantization.group_size: is missing"),
        block(
            "bits-string",
            r#"{"bits": "4", "group_size": 64}"#,
            "quantization.bits: is \"4\", wanted a positive whole number",
        ),
        block(
            "bits-nan",
            r#"{"bits": NaN, "group_size": 64}"#,
            "quantization.bits: is {\"__float__\":\"NaN\"}, wanted",
        ),
        block("bits-7", r#"{"bits": 7, "group_size": 64}"#, "quantization.bits: is 7, affine has [2, 3, 4, 5, 6, 8]"),
        block("bits-260", r#"{"bits": 260, "group_size": 64}"#, "quantization.bits: is 260, affine has"),
        block(
            "group-negative",
            r#"{"bits": 4, "group_size": -64}"#,
            "quantization.group_size: is -64, wanted a positive",
        ),
        block(
            "group-huge",
            r#"{"bits": 4, "group_size": 18446744073709551615}"#,
            "quantization.group_size: is 18446744073709551615, affine has [32, 64, 128]",
        ),
        block("group-float", r#"{"bits": 4, "group_size": 64.0}"#, "quantization.group_size: is 64.0, wanted"),
        block(
            "mode-unknown",
            r#"{"bits": 4, "group_size": 64, "mode": "q4"}"#,
            "quantization.mode: is \"q4\", wanted one of affine, mxfp4, mxfp8, nvfp4",
        ),
        block("mode-number", r#"{"bits": 4, "group_size": 64, "mode": 4}"#, "quantization.mode: is 4, wanted a string"),
        block(
            "mxfp4-group",
            r#"{"bits": 4, "group_size": 64, "mode": "mxfp4"}"#,
            "quantization.group_size: is 64, mxfp4 has [32]",
        ),
        block(
            "entry-bits",
            r#"{"bits": 4, "group_size": 64, "a.b": {"bits": 9}}"#,
            "quantization.a.b.bits: is 9, affine has",
        ),
        foreign(
            "gptq",
            r#"{"quant_method": "gptq", "bits": 4}"#,
            "quantization_config.quant_method: is \"gptq\", which is not read",
        ),
        foreign(
            "fp8",
            r#"{"quant_method": "compressed-tensors", "format": "float-quantized"}"#,
            "quantization_config.quant_method: is \"compressed-tensors\" (format \"float-quantized\"), which is not read",
        ),
        case(
            "text-config",
            r#"{"text_config": {"quantization_config": {"quant_method": 5}}}"#,
            "text_config.quantization_config.quant_method: is 5, which",
        ),
    ]
}

fn corpus() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus"))
}

fn corpus_path(case: &Case) -> PathBuf {
    corpus().join(format!("{:?}", case.0).to_lowercase()).join(case.1)
}

#[test]
fn every_case_is_answered_as_it_should_be() {
    let wrong: Vec<_> = cases().iter().filter_map(wrong_answer).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// D-40: a type that is not known costs its tensor alone and bf16 is known; rows are whole blocks; shapes do not overflow and
/// tensors end within the file; nested arrays and counts are bounded; integers are not taken for weights.
#[test]
fn d_40_gguf_files_are_held_to_their_bounds() {
    let cases = gguf_cases();
    for name in [
        "unknown-type",
        "row-not-blocks",
        "dims-overflow",
        "bytes-overflow",
        "data-past-end",
        "offset-past-end",
        "nested-1000",
        "array-huge",
        "tensor-count-huge",
    ] {
        let case = cases.iter().find(|case| case.1 == name).unwrap_or_else(|| panic!("no case {name}"));
        assert_eq!(wrong_answer(case), None);
    }
    let file = Gguf::new().tensor("w", &[16], 30, 0).tensor("i", &[16], 25, 32).tensor("new", &[16], 9999, 64).data(96);
    let file = GgufFile::parse(Path::new("some/file"), Mapped::copy_from(&file.bytes()).unwrap()).unwrap();
    let dense = |name| file.tensors.get(name).unwrap().dense();
    assert_eq!(dense("w").unwrap(), DType::BF16);
    assert!(dense("i").is_err() && dense("new").is_err());
}

fn wrong_answer(Case(target, name, bytes, wanted): &Case) -> Option<String> {
    let got = target.walk(bytes).err().map(|e| e.to_string()).unwrap_or_default();
    let got = got.strip_prefix("some/file: ").unwrap_or(&got);
    let right = if wanted.is_empty() { got.is_empty() } else { got.starts_with(wanted) };
    (!right).then(|| format!("{target:?} {name}: wanted {wanted:?}, got {got:?}"))
}

#[test]
fn the_corpus_holds_every_case_and_nothing_in_it_panics() {
    for case in cases() {
        let path = corpus_path(&case);
        assert!(fs::read(&path).is_ok_and(|b| b == case.2), "{} is out of date: run write_corpus", path.display());
    }
    for target in [Target::Safetensors, Target::Gguf, Target::Config] {
        for file in fs::read_dir(corpus().join(format!("{target:?}").to_lowercase())).unwrap() {
            let _ = target.walk(&fs::read(file.unwrap().path()).unwrap());
        }
    }
}

#[test]
#[ignore = "writes fuzz/corpus"]
fn write_corpus() {
    for case in cases() {
        let path = corpus_path(&case);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, &case.2).unwrap();
    }
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    let gguf = make::good_gguf().bytes();
    // The last tensor's type is unknown, so its end is the file's; 96 bytes in, it begins.
    let needed = gguf.len() - 4;
    for (target, bytes, needed) in [
        (Target::Safetensors, good_safetensors(), good_safetensors().len()),
        (Target::Gguf, gguf, needed),
        (Target::Config, good_config(), good_config().len()),
    ] {
        target.walk(&bytes).unwrap();
        for len in 0..needed {
            assert!(target.walk(&bytes[..len]).is_err(), "{target:?} of {len} bytes");
        }
    }
}
