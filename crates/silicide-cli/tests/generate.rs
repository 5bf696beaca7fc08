//! The subcommands that run a model, on checkpoints of `oracle/tiny`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use silicide::formats::safetensors::SafetensorsFile;

fn checkpoint(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../oracle/tiny").join(name);
    let gguf = folder.join("model.gguf");
    if gguf.exists() { gguf } else { folder }
}

fn silicide(args: &[&str], stdin: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_silicide"));
    let mut child = command
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    // A program that needs no stdin may have closed it.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    child.wait_with_output().unwrap()
}

#[track_caller]
fn json(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(text.lines().last().expect("a line")).expect("the last line is an object")
}

fn words(file: &SafetensorsFile, name: &str) -> Vec<u32> {
    let raw = file.tensors.get(name).unwrap();
    raw.bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
}

#[test]
fn generate_gives_the_oracles_tokens_and_logits() {
    let scratch = tempfile::tempdir().unwrap();
    for name in ["llama-mlx-4bit-gs64-bf16", "qwen3-gguf-q8_0", "gemma3-nested-hf-f16"] {
        let model = checkpoint(name);
        let folder = if model.is_dir() { model.clone() } else { model.parent().unwrap().to_owned() };
        let expected = SafetensorsFile::open(&folder.join("expected.safetensors")).unwrap();
        let (prompt, greedy) = (words(&expected, "prompt_12"), words(&expected, "greedy_12"));
        let ids: Vec<_> = prompt.iter().map(u32::to_string).collect();
        let logits = scratch.path().join("logits.safetensors");
        let output = silicide(
            &[
                "generate",
                "--model",
                model.to_str().unwrap(),
                "--prompt-tokens",
                &ids.join(","),
                "--max-tokens=32",
                "--temp=0",
                "--ignore-eos",
                "--dtype=f32",
                "--device=cpu",
                "--threads=2",
                "--json",
                "--save-logits",
                logits.to_str().unwrap(),
            ],
            "",
        );
        let report = json(&output);
        assert_eq!(report["prompt_tokens"], serde_json::json!(prompt), "{name}");
        assert_eq!(report["tokens"], serde_json::json!(greedy), "{name}");
        assert_eq!(report["finish_reason"], "length");
        assert_eq!(report["device"], "cpu");
        assert!(report["timings"]["load_seconds"].as_f64().unwrap() > 0.0);

        let saved = SafetensorsFile::open(&logits).unwrap();
        let want: Vec<f32> = words(&expected, "logits_12").into_iter().map(f32::from_bits).collect();
        let vocabulary = want.len() / prompt.len();
        let shape = saved.tensors.get("logits").unwrap().shape;
        assert_eq!(shape[..], [prompt.len() + greedy.len(), vocabulary]);
        let got = words(&saved, "logits").into_iter().map(f32::from_bits);
        assert!(got.zip(&want).all(|(got, want)| (got - want).abs() < 1e-3), "{name}");
    }
}

#[test]
fn generate_reads_stdin_stops_and_repeats_a_seed() {
    let model = checkpoint("llama-mlx-4bit-gs64-bf16");
    let model = model.to_str().unwrap();
    let run =
        |options: &[&str]| silicide(&[&["generate", "--model", model, "--no-template"], options].concat(), "a b c\n");
    let seeded = ["--temp=1", "--seed=7", "--max-tokens=12", "--ignore-eos", "--json"];
    let first = json(&run(&seeded));
    assert_eq!(first["tokens"], json(&run(&seeded))["tokens"]);
    assert_eq!(first["tokens"].as_array().unwrap().len(), 12);

    // A piece of the text as a stop string ends it there, and is not part of it.
    let plain = json(&run(&["--temp=0", "--max-tokens=12", "--ignore-eos", "--json"]));
    let text = plain["text"].as_str().unwrap();
    let stop: String = text.chars().skip(1).take(2).collect();
    assert!(!stop.is_empty(), "{text:?}");
    let stopped = json(&run(&["--temp=0", "--max-tokens=12", "--ignore-eos", "--json", "--stop", &stop]));
    assert_eq!(stopped["finish_reason"], "stop");
    assert_eq!(stopped["text"].as_str().unwrap(), &text[..text.find(&stop).unwrap()]);

    // Without --json the text is all there is on stdout, and the figures are on stderr.
    let output = run(&["--temp=0", "--max-tokens=12", "--ignore-eos"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim_end_matches('\n'), text.trim_end_matches('\n'));
    assert!(String::from_utf8_lossy(&output.stderr).contains("tok/s"));
}

#[test]
fn what_cannot_be_run_is_an_error_that_says_why() {
    let model = checkpoint("llama-mlx-4bit-gs64-bf16");
    let model = model.to_str().unwrap();
    let error = |args: &[&str]| {
        let output = silicide(args, "");
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let unknown = error(&["generate", "--model", model, "--prompt-tokens=1,99999999"]);
    assert!(unknown.contains("99999999") && unknown.contains("the model knows"), "{unknown}");
    let empty = error(&["generate", "--model", model, "--prompt", "", "--no-template"]);
    assert!(empty.contains("empty"), "{empty}");
    // Known before the work, and said once.
    for (path, why) in [("/nowhere/logits.safetensors", "there is no folder /nowhere\n"), ("/", "that is a folder")] {
        let unwritable = error(&["generate", "--model", model, "--prompt-tokens=1", "--save-logits", path]);
        assert!(unwritable.contains(why) && unwritable.lines().count() == 1, "{unwritable}");
    }
    if !cfg!(target_os = "macos") {
        let metal = error(&["generate", "--model", model, "--prompt-tokens=1", "--device=metal"]);
        assert!(metal.contains("macOS"), "{metal}");
    }
}

#[test]
fn inspect_devices_and_explain_tell_scripts_what_they_tell_people() {
    let model = checkpoint("llama-tied-mlx-mixed-bf16");
    let model = model.to_str().unwrap();
    let found = json(&silicide(&["inspect", model, "--json", "--tensors"], ""));
    assert_eq!((found["architecture"].as_str(), found["supported"].as_bool()), (Some("llama"), Some(true)));
    assert!(found["formats"].as_array().unwrap().len() >= 3, "{found}");
    let table = silicide(&["inspect", model, "--tensors"], "");
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(found["tensors"].as_array().unwrap().iter().all(|t| table.contains(t["name"].as_str().unwrap())));

    // Where layers differ, the ones of each format are named, and together they are all.
    let places = |format: &Value| format["places"].as_array().unwrap().clone();
    let down: Vec<_> = found["formats"].as_array().unwrap().iter().flat_map(places).map(|p| p.to_string()).collect();
    let mixed = down.iter().filter(|place| place.contains("down_proj")).collect::<Vec<_>>();
    assert!(
        mixed.len() == 2 && mixed.iter().all(|place| place.contains(".layers.") && !place.contains('*')),
        "{down:?}"
    );

    let template = json(&silicide(&["inspect", checkpoint("llama-gguf-q8_0").to_str().unwrap(), "--json"], ""));
    assert!(template["ends_with"].is_string(), "{template}");

    let devices = json(&silicide(&["devices", "--json"], ""));
    assert!(devices.as_array().unwrap().iter().any(|d| d["device"] == "cpu" && d["available"] == true));

    let plans = json(&silicide(&["explain", model, "--json", "--device=cpu"], ""));
    for plan in [&plans["decode"], &plans["prefill"]] {
        let steps = plan["steps"].as_array().unwrap();
        let launches: u64 = steps.iter().map(|s| s["launches"].as_u64().unwrap()).sum();
        assert_eq!(plan["launches"], launches);
        let share: f64 = steps.iter().map(|s| s["share"].as_f64().unwrap()).sum();
        assert!((share - 1.0).abs() < 1e-6, "shares add up to {share}");
        assert!(steps.iter().all(|s| ["kernel", "why"].iter().all(|key| !s[key].as_str().unwrap().is_empty())));
    }
    let every = json(&silicide(&["explain", model, "--json", "--all", "--device=cpu"], ""));
    assert_eq!(every["decode"]["steps"].as_array().unwrap().len() as u64, plans["decode"]["launches"]);
    assert_eq!(every["decode"]["steps"][0]["op"], "embedding");
}

#[test]
fn a_conversation_is_held_over_a_pipe() {
    let model = checkpoint("llama-mlx-4bit-gs64-bf16");
    let output = silicide(&["chat", "--model", model.to_str().unwrap(), "--max-tokens=4"], "a\n/reset\nb\n/exit\n");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stderr).contains("new conversation"));
    assert!(!output.stdout.is_empty());
}
