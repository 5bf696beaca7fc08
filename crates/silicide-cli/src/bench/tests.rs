//! That nothing is left out, and that what is printed can be read. Times are not looked at.

use std::collections::BTreeSet;

use clap::Parser;
use serde_json::Value;

use super::*;
use crate::args::{BenchCommand, Cli, Command};

/// Runs `silicide bench ops` with these options: what it prints, and how it ends.
fn bench(options: &[&str]) -> (String, anyhow::Result<()>) {
    let line = ["silicide", "bench", "ops", "--device=cpu"].iter().chain(options);
    let Command::Bench(BenchCommand::Ops(args)) = Cli::try_parse_from(line).unwrap().command else {
        unreachable!("it is this subcommand");
    };
    let mut out = Vec::new();
    let result = ops(&args, &mut out, &mut std::io::sink());
    (String::from_utf8(out).unwrap(), result)
}

/// What `silicide::ops` makes public of functions that launch something.
fn exported() -> BTreeSet<String> {
    let source = include_str!("../../../silicide/src/ops/mod.rs");
    let items = source.split(';').filter_map(|item| item.trim_start().strip_prefix("pub use "));
    let names = items.flat_map(|item| item.split_once("::").expect("from a module").1.split(','));
    let names = names.map(|name| name.trim_matches(|c: char| !c.is_alphanumeric()).to_owned());
    // Forms that are told where to write are the same launches; these two make tensors on the host.
    let other =
        |name: &String| !name.ends_with("_into") && !["hadamard_signs", "sample_state"].contains(&name.as_str());
    names.filter(|name| name.starts_with(|c: char| c.is_ascii_lowercase())).filter(other).collect()
}

#[test]
fn every_op_is_timed() {
    let exported = exported();
    assert!(exported.contains("rms_norm") && exported.contains("weighted_reduce"), "{exported:?}");
    for kind in [DeviceKind::Cpu, DeviceKind::Cuda] {
        let timed: BTreeSet<_> = cases(kind).iter().map(|case| case.op.to_owned()).collect();
        let missing: Vec<_> = exported.difference(&timed).collect();
        assert!(missing.is_empty(), "without a case in crates/silicide-cli/src/bench: {missing:?}");
        let gone: Vec<_> = timed.difference(&exported).collect();
        assert!(gone.is_empty(), "not in silicide::ops: {gone:?}");
    }
}

#[test]
fn every_case_is_another() {
    for kind in [DeviceKind::Cpu, DeviceKind::Cuda] {
        let cases = cases(kind);
        let names: BTreeSet<_> = cases.iter().map(|case| (case.name(), case.model)).collect();
        assert_eq!(names.len(), cases.len());
    }
}

#[test]
fn the_json_has_the_documented_fields() {
    let (out, result) = bench(&["--filter=router 1 x", "--pool=1M", "--json"]);
    result.unwrap();
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(out.lines().count(), 1);
    for key in ["version", "device", "dtype", "kv_dtype", "pool_bytes", "ceilings", "ceilings_after"] {
        assert!(!report[key].is_null(), "{key}");
    }
    assert!(report["ceilings"]["copy_bytes"].as_f64().unwrap() > 0.0);
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2);
    let row = &rows[0];
    assert_eq!((&row["op"], &row["model"]), (&"router".into(), &"Qwen3.6-35B-A3B".into()));
    assert_eq!(row["bytes"], 256 * 4 + 8 * 4 + 8 * 4);
    assert!(row["error"].is_null() && row["median_seconds"].as_f64().unwrap() >= row["best_seconds"].as_f64().unwrap());
    assert!(row["share"].as_f64().unwrap() > 0.0 && row["bound"].is_string(), "{row}");
}

#[test]
fn the_table_has_a_line_a_case() {
    let (out, result) = bench(&["--filter=rope 1 x", "--model=llama", "--pool=1M", "--rounds=1"]);
    result.unwrap();
    let table: Vec<_> = out.lines().filter(|line| line.starts_with('|')).collect();
    assert_eq!(table.len(), 3, "{out}");
    assert!(table[2].starts_with("| rope | Llama-3-8B | 1 x 32 x 128 | "), "{out}");
    assert!(table.iter().all(|line| line.matches('|').count() == 11), "{out}");
    assert!(out.contains("Measured before: copies ") && out.contains("Measured after: copies "), "{out}");
}

#[test]
fn unknown_names_are_refused_with_the_known_ones() {
    for (options, says) in [
        (&["--filter=rms_nrom"][..], "no op is named \"rms_nrom\"; there are arange, argmax,"),
        (&["--model=gpt-2"], "no model is named \"gpt-2\"; there are Llama-3-8B, Qwen3.6 vision,"),
        (&["--model=llama", "--filter=router"], "that model has no such op"),
    ] {
        let (out, result) = bench(options);
        let error = result.unwrap_err().to_string();
        assert!(out.is_empty() && error.contains(says), "{error}");
    }
}

/// Runs `silicide bench gains` with these options.
fn bench_gains(options: &[&str]) -> (String, anyhow::Result<()>) {
    let line = ["silicide", "bench", "gains"].iter().chain(options);
    let Command::Bench(BenchCommand::Gains(args)) = Cli::try_parse_from(line).unwrap().command else {
        unreachable!("it is this subcommand");
    };
    let mut out = Vec::new();
    let result = gains(&args, &mut out);
    (String::from_utf8(out).unwrap(), result)
}

#[test]
fn a_gain_is_shown_where_a_kernel_of_its_own_runs() {
    if Device::emulated_cuda(engine::checked()).is_err() {
        assert!(std::env::var_os("SILICIDE_REQUIRE_EMULATED").is_none(), "the emulated device is missing");
        return;
    }
    let options = ["--device=emulated-cuda", "--filter=kv_quantize_with", "--rounds=1", "--pool=64K"];
    let (out, result) = bench_gains(&options);
    result.unwrap();
    let lines: Vec<_> = out.lines().filter(|line| line.starts_with("| kv")).collect();
    let [line] = lines[..] else { panic!("{out}") };
    assert!(line.starts_with("| kv_quantize_with | 4 bits, 512 x 8 x 128, a ring | `kv_quantize/many.cu` | "), "{out}");
    let columns: Vec<_> = line.split('|').map(str::trim).collect();
    let time = |column: &str| column.split(' ').next().unwrap().parse::<f64>().unwrap();
    assert!(time(columns[4]) > 0.0 && time(columns[5]) > 0.0 && time(columns[6]) > 0.0, "{line}");

    let (_, result) = bench_gains(&[&options[..], &["matmul"]].concat());
    assert_eq!(result.unwrap_err().to_string(), "no kernel of matmul's own runs at these shapes");
    let (_, result) = bench_gains(&["--device=cpu"]);
    let error = result.unwrap_err().to_string();
    assert_eq!(error, "cpu runs no kernels of its own: wanted --device cuda, or emulated-cuda");
}

#[test]
fn gains_are_written_to_the_folder_of_their_kernel() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("sort")).unwrap();
    let tables = [("sort".to_owned(), vec!["| a |".to_owned(), "| b |".to_owned()])].into();
    super::gains::write_tables(directory.path(), "head\n", &tables).unwrap();
    assert_eq!(std::fs::read_to_string(directory.path().join("sort/gains.md")).unwrap(), "head\n| a |\n| b |\n");
    let tables = [("missing".to_owned(), Vec::new())].into();
    let error = super::gains::write_tables(directory.path(), "", &tables).unwrap_err().to_string();
    assert!(error.contains("missing") && error.ends_with("cannot be written"), "{error}");
    let left: Vec<_> = std::fs::read_dir(directory.path().join("sort")).unwrap().collect();
    assert_eq!(left.len(), 1);
}

#[test]
fn operands_of_a_call_lie_apart() {
    use silicide::DType;
    let setup = &mut Setup::new(&Device::cpu(), 4096).unwrap();
    for copy in 0..5 {
        let case = Case::new("copy", "any", "", |s| {
            let tensors = [700, 1000, 300, 900].map(|n| s.input(DType::U8, [n]).unwrap());
            for (i, a) in tensors.iter().enumerate() {
                for b in &tensors[..i] {
                    let (x, y) = (a.byte_range(), b.byte_range());
                    assert!(!a.buffer().is_same(b.buffer()) || x.end <= y.start || y.end <= x.start, "{x:?} {y:?}");
                }
            }
            case::call(|_| Ok(()))
        });
        let (_, moved) = case.make(setup, copy).unwrap();
        assert_eq!((moved.read, moved.written), (2900, 0));
    }
}
