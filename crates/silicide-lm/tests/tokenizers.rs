//! Tokenizers against the `tokenizers` library, transformers and llama.cpp: small ones of each kind (oracle/small_tokenizers.py),
//! and those whole real ones that `oracle/encode.py` has put into `oracle/.large/tokenizers`. They are megabytes, so there may
//! be none.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use silicide_lm::{GgufVocab, Tokenizer};

#[derive(Deserialize)]
struct Expected {
    bos: Option<u32>,
    eos: Option<u32>,
    vocab_size: Option<usize>,
    cases: Vec<Case>,
    #[serde(default)]
    id_cases: Vec<IdCase>,
}

/// Ids that no text gives, and their text.
#[derive(Deserialize)]
struct IdCase {
    ids: Vec<u32>,
    decoded: String,
    skipped: String,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
    with_special: Vec<u32>,
    decoded: Option<String>,
    skipped: Option<String>,
}

fn folders(root: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../oracle").join(root);
    let Ok(entries) = std::fs::read_dir(root) else { return Vec::new() };
    let mut folders: Vec<_> = entries.map(|entry| entry.expect("a folder entry").path()).collect();
    folders.sort();
    folders
}

fn read_json<T: serde::de::DeserializeOwned>(path: PathBuf) -> T {
    serde_json::from_slice(&std::fs::read(&path).expect("a file of the oracle")).expect("the oracle's JSON")
}

fn expected(folder: &Path) -> Expected {
    read_json(folder.join("expected.json"))
}

fn name(folder: &Path) -> &str {
    folder.file_name().and_then(|name| name.to_str()).expect("a name")
}

#[test]
fn small_tokenizers_encode_and_decode_as_in_transformers() {
    let folders = folders("vectors/tokenizers");
    assert_eq!(folders.len(), 4);
    compare(&folders);
}

#[test]
fn real_tokenizers_encode_and_decode_as_in_transformers() {
    compare(&folders(".large/tokenizers"));
}

fn compare(folders: &[PathBuf]) {
    for folder in folders.iter().filter(|folder| folder.join("tokenizer.json").exists()) {
        let (tokenizer, expected) = (Tokenizer::from_folder(folder).expect("a tokenizer"), expected(folder));
        assert_eq!(Some(tokenizer.vocab_size()), expected.vocab_size, "{}", name(folder));
        assert_eq!(tokenizer.bos_id(), expected.bos, "{}", name(folder));
        assert_eq!(tokenizer.eos_ids().first().copied(), expected.eos, "{}", name(folder));
        for case in &expected.cases {
            let context = format!("{}: {:?}", name(folder), case.text);
            assert_eq!(tokenizer.encode(&case.text, false).expect("ids"), case.ids, "{context}");
            assert_eq!(tokenizer.encode(&case.text, true).expect("ids"), case.with_special, "{context}");
            assert_eq!(Some(tokenizer.decode(&case.ids, false)), case.decoded, "{context}");
            assert_eq!(Some(tokenizer.decode(&case.ids, true)), case.skipped, "{context}");
        }
        for case in &expected.id_cases {
            assert_eq!(tokenizer.decode(&case.ids, false), case.decoded, "{}: {:?}", name(folder), case.ids);
            assert_eq!(tokenizer.decode(&case.ids, true), case.skipped, "{}: {:?}", name(folder), case.ids);
        }
    }
}

#[test]
fn gguf_vocabularies_encode_as_in_llama_cpp() {
    for folder in folders(".large/tokenizers").iter().filter(|folder| folder.join("vocab.json").exists()) {
        let (tokenizer, expected) = (Tokenizer::from_gguf(vocab(folder)).expect("a tokenizer"), expected(folder));
        let mut failures = Vec::new();
        for case in &expected.cases {
            let ids = tokenizer.encode(&case.text, false).expect("ids");
            if ids != case.ids || tokenizer.encode(&case.text, true).expect("ids") != case.with_special {
                failures.push(format!("{}: {:?}\n want {:?}\n got  {ids:?}", name(folder), case.text, case.ids));
            }
        }
        assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), expected.cases.len(), failures.join("\n"));
    }
}

/// The vocabulary alone, as a GGUF file would have it, gives the ids of the whole `tokenizer.json`.
#[test]
fn gguf_pipelines_are_those_of_tokenizer_json() {
    let kinds = [
        ("byte_fallback", "llama"),
        ("byte_level", "smollm"),
        ("deepseek_v3", "deepseek-v3"),
        ("gemma3", "gemma"),
        ("gpt2", "gpt-2"),
        ("gpt4o", "gpt-4o"),
        ("gptoss", "gpt-4o"),
        ("llama2", "llama"),
        ("llama3", "llama-bpe"),
        ("llama3_2", "llama-bpe"),
        ("mistral_nemo", "tekken"),
        ("qwen2_5", "qwen2"),
        ("qwen3", "qwen2"),
    ];
    for folder in folders("vectors/tokenizers").into_iter().chain(folders(".large/tokenizers")) {
        let Some((_, pre)) = kinds.iter().find(|(kind, _)| *kind == name(&folder)) else { continue };
        let tokenizer = Tokenizer::from_gguf(strip_to_vocab(&folder, pre)).expect("a tokenizer");
        let mut failures = Vec::new();
        let cases = expected(&folder).cases;
        for case in &cases {
            let ids = tokenizer.encode(&case.text, false).expect("ids");
            let decoded = tokenizer.decode(&ids, false);
            if ids != case.ids || Some(&decoded) != case.decoded.as_ref() {
                failures.push(format!("{}: {:?}\n want {:?}\n got  {ids:?}", name(&folder), case.text, case.ids));
            }
        }
        assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), cases.len(), failures.join("\n"));
    }
}

fn vocab(folder: &Path) -> GgufVocab {
    let json: Value = read_json(folder.join("vocab.json"));
    fn list<T: serde::de::DeserializeOwned>(json: &Value) -> Vec<T> {
        serde_json::from_value(json.clone()).expect("a list")
    }
    let id = |name: &str| json[name].as_u64().map(|id| id as u32);
    GgufVocab {
        model: json["model"].as_str().expect("a kind").into(),
        pre: json["pre"].as_str().map(Into::into),
        tokens: list(&json["tokens"]),
        scores: list(&json["scores"]),
        token_types: list(&json["token_types"]),
        merges: list(&json["merges"]),
        bos_id: id("bos_id"),
        eos_id: id("eos_id"),
        unk_id: id("unk_id"),
        add_bos: json["add_bos"].as_bool(),
        add_space_prefix: json["add_space_prefix"].as_bool(),
        ..GgufVocab::default()
    }
}

/// What a converter keeps of a `tokenizer.json`.
fn strip_to_vocab(folder: &Path, pre: &str) -> GgufVocab {
    let json: Value = read_json(folder.join("tokenizer.json"));
    let model = &json["model"];
    let mut tokens = Vec::<(usize, String, i32)>::new();
    for (token, id) in model["vocab"].as_object().expect("a vocabulary") {
        let byte = token.len() == 6 && token.starts_with("<0x") && model["byte_fallback"] == true;
        tokens.push((id.as_u64().expect("an id") as usize, token.clone(), if byte { 6 } else { 1 }));
    }
    for token in json["added_tokens"].as_array().expect("added tokens") {
        let (id, content) = (token["id"].as_u64().expect("an id") as usize, token["content"].as_str().expect("a text"));
        tokens.push((id, content.into(), if token["special"] == true { 3 } else { 4 }));
    }
    let size = tokens.iter().map(|(id, ..)| id + 1).max().expect("tokens");
    let mut vocab = GgufVocab { model: "gpt2".into(), pre: Some(pre.into()), ..GgufVocab::default() };
    vocab.tokens = (0..size).map(|id| format!("[PAD{id}]")).collect();
    vocab.token_types = vec![5; size];
    for (id, token, kind) in tokens {
        vocab.tokens[id] = token;
        vocab.token_types[id] = kind;
    }
    let merges = model["merges"].as_array().expect("merges").iter();
    let pair = |merge: &Value| match merge {
        Value::String(pair) => pair.clone(),
        pair => format!("{} {}", pair[0].as_str().expect("a token"), pair[1].as_str().expect("a token")),
    };
    let merges: Vec<String> = merges.map(pair).collect();
    if let "llama" | "gemma" = pre {
        vocab.model = "llama".into();
        // The scores fell in the order in which tokens were first merged.
        let mut ranks = HashMap::new();
        for (rank, merge) in merges.iter().enumerate() {
            ranks.entry(merge.replacen(' ', "", 1)).or_insert(rank);
        }
        let score = |token: &String| ranks.get(token).map_or(-1e9, |&rank| -(rank as f32));
        vocab.scores = vocab.tokens.iter().map(score).collect();
        vocab.unk_id = vocab.tokens.iter().position(|token| token == "<unk>").map(|id| id as u32);
        vocab.add_space_prefix = Some(pre == "llama");
    } else {
        vocab.merges = merges;
    }
    vocab
}
