//! Malformed tokenizer and template files: errors that name the file and the field, and no panics.

use std::path::Path;

use silicide::Device;
use silicide::formats::Checkpoint;
use silicide_lm::{ChatTemplate, GenerateOptions, GgufVocab, Message, Model, TemplateOptions, Tokenizer};

fn small(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../oracle/vectors/tokenizers/byte_level").join(name);
    std::fs::read_to_string(path).expect("a small tokenizer")
}

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).expect("a file");
    }
    folder
}

fn error(files: &[(&str, &str)]) -> String {
    Tokenizer::from_folder(folder(files).path()).map_or_else(|e| e.to_string(), |_| "no error".into())
}

#[test]
fn errors_name_the_file_and_the_field() {
    let whole = small("tokenizer.json");
    let edited = |from: &str, to: &str| {
        assert!(whole.contains(from), "{from}");
        whole.replacen(from, to, 1)
    };
    for (text, field) in [
        ("", "file"),
        ("[]", "file"),
        ("{}", "model"),
        (r#"{"model": {"type": "Oracle"}}"#, "model"),
        (&whole[..whole.len() / 2], "file"),
        (&edited(r#""pre_tokenizer":{"#, r#""pre_tokenizer":5,"before":{"#), "pre_tokenizer"),
        (&edited(r#""decoder":{"type":"ByteLevel""#, r#""decoder":{"type":"CTC""#), "decoder"),
        (
            &edited(
                r#""decoder":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true}"#,
                r#""decoder":null"#,
            ),
            "decoder",
        ),
        (&edited(r#""id":0,"#, r#""id":-1,"#), "added_tokens"),
        (&edited(r#"["Ġ","t"]"#, r#"["Ġ","nothing"]"#), "model"),
    ] {
        let message = error(&[("tokenizer.json", text)]);
        assert!(message.contains("tokenizer.json") && message.contains(field), "want {field}: {message}");
    }
    assert!(error(&[]).contains("tokenizer.json: file: missing"));
    assert!(error(&[("tokenizer.model", "")]).contains("tokenizer.model alone"));
    for (config, field) in [
        (r#"{"eos_token": "</nothing>"}"#, "eos_token"),
        (r#"{"bos_token": 5}"#, "bos_token"),
        (r#"{"chat_template": 5}"#, "chat_template"),
        (r#"{"chat_template": [{"name": "default"}]}"#, "chat_template"),
        (r#"{"added_tokens_decoder": {"x": {"content": "y"}}}"#, "added_tokens_decoder.x"),
        (r#"{"added_tokens_decoder": {"4000000000": {"content": "<new>"}}}"#, "added_tokens_decoder"),
        (r#"{"added_tokens_decoder": []}"#, "added_tokens_decoder"),
        ("null", "file"),
    ] {
        let message = error(&[("tokenizer.json", &whole), ("tokenizer_config.json", config)]);
        assert!(message.contains("tokenizer_config.json") && message.contains(field), "want {field}: {message}");
    }
}

#[test]
fn ids_do_not_choose_how_much_is_allocated() {
    let text = small("tokenizer.json").replacen("\"Ġt\":", "\"Ġt\":4294967295,\"unused\":", 1);
    let message = error(&[("tokenizer.json", &text)]);
    assert!(message.contains("4294967295 is out of range"), "{message}");
}

/// Cuts and changed bytes all over the file: any result will do, but for a panic.
#[test]
fn damaged_files_do_not_panic() {
    for kind in ["byte_level", "byte_fallback", "metaspace", "split_bytes"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../oracle/vectors/tokenizers").join(kind);
        let whole = std::fs::read(path.join("tokenizer.json")).expect("a small tokenizer");
        let folder = tempfile::tempdir().expect("a folder");
        let mut random = 1u64;
        for _ in 0..100 {
            let mut bytes = whole.clone();
            for _ in 0..2 {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                // The pipeline stands at the two ends of the file.
                let at = (random >> 33) as usize % bytes.len().min(1500);
                let at = if random & 1 == 0 { at } else { bytes.len() - 1 - at };
                bytes[at] = b"019\"{}[]:,aT-"[(random >> 20) as usize % 13];
            }
            std::fs::write(folder.path().join("tokenizer.json"), &bytes).expect("a file");
            if let Ok(tokenizer) = Tokenizer::from_folder(folder.path())
                && let Ok(ids) = tokenizer.encode("The fox: 12, 你好 <|im_end|>", true)
            {
                tokenizer.decode(&ids, false);
            }
        }
    }
}

/// What is done to a tensor's bytes.
type Damage = fn(&mut [u8]);

/// A checkpoint of `oracle/tiny` with one tensor's bytes changed, and what loading it says.
fn error_of_damaged(model: &str, file: &str, tensor: &str, change: Damage) -> String {
    load_damaged(model, file, tensor, change).err().map_or("no error".into(), |e| e.to_string())
}

fn load_damaged(model: &str, file: &str, tensor: &str, change: Damage) -> silicide_lm::Result<Model> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../oracle/tiny").join(model);
    let folder = tempfile::tempdir().expect("a folder");
    for entry in std::fs::read_dir(&source).expect("a checkpoint") {
        let path = entry.expect("a file").path();
        std::fs::copy(&path, folder.path().join(path.file_name().expect("a name"))).expect("a copy");
    }
    let path = folder.path().join(file);
    let opened = if file.ends_with(".gguf") { path.clone() } else { folder.path().into() };
    let span = Checkpoint::open(&opened).and_then(|c| c.get(tensor)).expect("a tensor").bytes.range();
    let mut bytes = std::fs::read(&path).expect("a file");
    change(&mut bytes[span]);
    std::fs::write(&path, bytes).expect("a file");
    Model::load(&opened, &Device::cpu())
}

#[test]
fn an_error_ends_a_generation_and_is_no_reason_to_stop() {
    let nan: Damage = |b| b[..2].copy_from_slice(&[0xc0, 0x7f]);
    let model =
        load_damaged("llama-mlx-4bit-gs64-bf16", "model.safetensors", "model.norm.weight", nan).expect("a model");
    let mut generator = model.generate(vec![3, 4, 5], GenerateOptions::default()).expect("a generator");
    let error = generator.next().expect("an outcome").expect_err("logits are NaN");
    assert!(error.to_string().contains("NaN"), "{error}");
    assert!(generator.next().is_none());
    assert_eq!(generator.finish_reason(), None);
}

#[test]
fn scales_that_are_no_numbers_name_the_file_and_the_tensor() {
    let scales = "model.layers.0.self_attn.q_proj.scales";
    let biases = "model.layers.0.self_attn.q_proj.biases";
    let cases: [(&str, &str, Damage); 4] = [
        ("llama-mlx-4bit-gs64-bf16", scales, |b| b[..2].copy_from_slice(&[0xc0, 0x7f])),
        ("qwen3-mlx-6bit-gs64-f16", biases, |b| b[..2].copy_from_slice(&[0, 0x7c])),
        ("llama-mlx-mxfp4-bf16", scales, |b| b[0] = 255),
        ("gemma3-mlx-nvfp4-bf16", scales, |b| b[0] = 0x7f),
    ];
    for (model, tensor, change) in cases {
        let message = error_of_damaged(model, "model.safetensors", tensor, change);
        let said = format!("model.safetensors: {scales}: row 0: got a scale or bias that is NaN or infinite");
        assert!(message.contains(&said), "{model}: {message}");
    }
    let message = error_of_damaged("llama-gguf-q8_0", "model.gguf", "blk.0.attn_q.weight", |b| {
        b[..2].copy_from_slice(&[1, 0x7e])
    });
    assert!(message.contains("model.gguf: blk.0.attn_q.weight: row 0: got a scale"), "{message}");
}

fn vocab() -> GgufVocab {
    GgufVocab {
        model: "gpt2".into(),
        pre: Some("gpt-2".into()),
        tokens: ["a", "b", "ab", "<end>"].map(String::from).to_vec(),
        token_types: vec![1, 1, 1, 3],
        merges: vec!["a b".into()],
        eos_id: Some(3),
        ..GgufVocab::default()
    }
}

#[test]
fn gguf_errors_name_the_key() {
    let tokenizer = Tokenizer::from_gguf(vocab()).expect("a tokenizer");
    assert_eq!(tokenizer.encode("abba<end>", true).expect("ids"), [2, 1, 0, 3]);
    assert_eq!(tokenizer.eos_ids(), [3]);
    let refused = |change: fn(&mut GgufVocab), key: &str| {
        let mut vocab = vocab();
        change(&mut vocab);
        let message = Tokenizer::from_gguf(vocab).expect_err(key).to_string();
        assert!(message.contains(key), "want {key}: {message}");
    };
    refused(|v| v.model = "bert".into(), "ggml.model");
    refused(|v| v.pre = Some("unheard-of".into()), "ggml.pre");
    refused(|v| v.tokens.clear(), "ggml.tokens");
    refused(|v| v.token_types.push(1), "ggml.token_type");
    refused(|v| v.scores = vec![0.0], "ggml.scores");
    refused(|v| v.merges.clear(), "ggml.merges");
    refused(|v| v.merges.push("ab".into()), "ggml.merges");
    refused(|v| v.merges.push("a z".into()), "ggml.merges");
    refused(|v| v.eos_id = Some(4), "ggml.eos_token_id");
    refused(|v| v.model = "llama".into(), "ggml.");
    refused(
        |v| {
            v.model = "llama".into();
            v.merges.clear();
            v.scores = vec![f32::NAN; 4];
        },
        "ggml.scores",
    );
}

#[test]
fn template_errors_say_where_and_why() {
    let message = ChatTemplate::new("one\n{% if %}").expect_err("a syntax error").to_string();
    assert!(message.contains("line 2"), "{message}");
    let render = |source: &str| {
        let template = ChatTemplate::new(source).expect("a template");
        template.render(&[Message::new("user", "Hi")], &TemplateOptions::default())
    };
    let message = render("\n{{ raise_exception('roles must alternate') }}").expect_err("a refusal").to_string();
    assert!(message.contains("line 2") && message.contains("roles must alternate"), "{message}");
    // Work without end, and output without end.
    for source in [
        "{% for a in range(99999) %}{% for b in range(99999) %}{{ b }}{% endfor %}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    ] {
        render(source).expect_err(source);
    }
    assert!(ChatTemplate::new(&"{% if a %}".repeat(5000)).is_err());
    assert!(render(&format!("{{{{ {}1{} }}}}", "[".repeat(60), "]".repeat(60))).is_ok());
}
