//! docs/mlx-native.md names what is there: every entry point of mlx-native once, and no op, method or option that is not;
//! each of its defects has tests or a reason for none.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The table of entry points: theirs, ours, and the notes.
fn rows() -> Vec<[String; 3]> {
    let text = read("../../docs/mlx-native.md");
    let lines = text.lines().skip_while(|line| !line.starts_with("|---|---|---|")).skip(1);
    let table = lines.take_while(|line| line.starts_with('|'));
    let row = |line: &str| {
        let cells = line.strip_prefix("| ").and_then(|l| l.strip_suffix('|')).unwrap_or_else(|| panic!("{line}"));
        let cells: Vec<_> = cells.split(" | ").map(|cell| cell.trim_end_matches(" |").trim().to_owned()).collect();
        cells.try_into().unwrap_or_else(|cells: Vec<_>| panic!("{line}: {} cells", cells.len()))
    };
    table.map(row).collect()
}

/// What stands between backticks.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// What `ops/mod.rs` makes public.
fn exported() -> BTreeSet<String> {
    let text = read("src/ops/mod.rs");
    let items = text.split(';').filter_map(|item| item.trim_start().strip_prefix("pub use "));
    let names = items.flat_map(|item| {
        let names = item.split_once("::").expect("from a module").1;
        names.trim_matches(['{', '}']).split(',').map(|name| name.trim().trim_matches(['{', '}']).to_owned())
    });
    names.filter(|name| !name.is_empty()).collect()
}

/// The sources of the ops, without their tests.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] });
    files.filter(|path| path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs")).collect()
}

/// Whether `text` has `word` apart from other letters.
fn has_word(text: &str, word: &str) -> bool {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == word)
}

#[test]
fn every_entry_point_stands_there_once() {
    let rows = rows();
    let listed: Vec<_> = rows.iter().map(|row| row[0].trim_matches('`')).collect();
    let names: BTreeSet<_> = listed.iter().copied().collect();
    assert_eq!((listed.len(), names.len()), (136, 136));
    let modules: BTreeSet<_> = names.iter().map(|name| name.split_once("::").expect("a module").0).collect();
    assert_eq!(modules.len(), 57);
    assert!(listed.is_sorted());
}

#[test]
fn the_summary_counts_the_rows() {
    let rows = rows();
    let count = |what: &str| rows.iter().filter(|row| row[1] == what).count();
    let (missing, none) = (count("not there yet"), count("none"));
    let summary = format!(
        "Of the 136, {} have an op, a view or a few ops, {missing} are not there yet, and {none} are",
        136 - missing - none
    );
    assert!(read("../../docs/mlx-native.md").contains(&summary), "wanted: {summary}");
    let says = |row: &[String; 3]| code(&row[1]).any(|c| c.contains("::"));
    assert_eq!(rows.iter().filter(|row| says(row)).count(), 136 - missing - none);
}

#[test]
fn what_the_table_names_is_there() {
    let exported = exported();
    assert!(exported.contains("rms_norm_with") && exported.contains("FallbackAxis"), "{exported:?}");
    let ops: Vec<String> = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops"))
        .iter()
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    let methods = BTreeMap::from([("Tensor", read("src/tensor.rs")), ("Device", read("src/device/mod.rs"))]);
    let root = read("src/lib.rs");
    for row in rows() {
        for name in row[1..].iter().flat_map(|cell| code(cell)).filter(|name| name.contains("::")) {
            let (of, member) = name.split_once("::").unwrap();
            let there = match of {
                "ops" => exported.contains(member),
                "silicide" => root.contains(&format!("pub mod {member};")),
                _ => match methods.get(of) {
                    Some(source) => source.contains(&format!("pub fn {member}(")),
                    None => {
                        let declares = |text: &str| {
                            let kinds = ["enum", "struct"].map(|kind| format!("pub {kind} {of}"));
                            kinds.iter().any(|declaration| text.contains(declaration))
                        };
                        exported.contains(of) && ops.iter().any(|text| declares(text) && has_word(text, member))
                    }
                },
            };
            assert!(there, "{}: {name} is not there", row[0]);
        }
    }
}

/// All Rust sources in a folder.
fn rust(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.flat_map(|path| if path.is_dir() { rust(&path) } else { vec![path] });
    files.filter(|path| path.extension().is_some_and(|e| e == "rs")).collect()
}

#[test]
fn every_defect_has_a_test_or_a_reason_for_none() {
    // A test's name: `d_`, two digits, for one defect an `r`, and words.
    let number = |line: &str| {
        let name = line.trim_start().strip_prefix("fn d_")?;
        let (digits, rest) = name.split_at_checked(2)?;
        rest.trim_start_matches('r').starts_with('_').then(|| digits.parse::<u32>().ok())?
    };
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let folders = fs::read_dir(crates)
        .unwrap()
        .flat_map(|entry| ["src", "tests"].map(|f| entry.as_ref().unwrap().path().join(f)));
    let files = folders.filter(|folder| folder.is_dir()).flat_map(|folder| rust(&folder));
    let mut tested = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(file).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let tests = lines.windows(2).filter(|pair| pair[0].trim() == "#[test]");
        tested.extend(tests.filter_map(|pair| number(pair[1])));
    }
    let text = read("../../docs/mlx-native.md");
    let reasons = text.lines().filter_map(|line| line.strip_prefix("| D-"));
    let excused: BTreeSet<u32> = reasons.map(|line| line[..2].parse().expect("a number")).collect();
    assert_eq!(tested.intersection(&excused).collect::<Vec<_>>(), [&0u32; 0], "both tested and excused");
    let all: BTreeSet<u32> = (1..=26).chain(30..=40).collect();
    assert_eq!(tested.union(&excused).copied().collect::<BTreeSet<_>>(), all);
}
