//! Chat templates against transformers' renderings (oracle/templates.py).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::{Map, Value};
use silicide_lm::{ChatTemplate, Message, TemplateOptions};

#[derive(Deserialize)]
struct Vectors {
    now: f64,
    variables: BTreeMap<String, String>,
    cases: BTreeMap<String, Case>,
    /// Template, conversation, and its text or why there is none.
    rendered: BTreeMap<String, BTreeMap<String, Rendered>>,
}

#[derive(Deserialize)]
struct Case {
    messages: Vec<Message>,
    #[serde(default)]
    add_generation_prompt: bool,
    tools: Option<Value>,
    #[serde(flatten)]
    variables: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Rendered {
    Text(String),
    /// The template's own `raise_exception`.
    Refused {
        error: String,
    },
}

fn oracle(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../oracle").join(folder)
}

/// Compares every rendering in a folder; returns their number and what differs.
fn compare(folder: &Path) -> (usize, Vec<String>) {
    let vectors = std::fs::read_to_string(folder.join("rendered.json")).expect("rendered.json");
    let vectors: Vectors = serde_json::from_str(&vectors).expect("rendered.json has the oracle's shape");
    let (mut count, mut failures) = (0, Vec::new());
    for (name, renderings) in &vectors.rendered {
        let source = std::fs::read_to_string(folder.join(format!("{name}.jinja"))).expect("the template");
        let template = match ChatTemplate::new(&source) {
            Ok(template) => template.with_variables(vectors.variables.iter().map(|(k, v)| (k.as_str(), v.as_str()))),
            Err(e) => {
                failures.push(format!("{name}: {e}"));
                continue;
            }
        };
        for (case_name, want) in renderings {
            let case = &vectors.cases[case_name];
            let options = TemplateOptions {
                add_generation_prompt: case.add_generation_prompt,
                tools: case.tools.clone(),
                variables: case.variables.clone(),
                now: Some(UNIX_EPOCH + Duration::from_secs_f64(vectors.now)),
            };
            let got = template.render(&case.messages, &options);
            count += 1;
            match (&got, want) {
                (Ok(got), Rendered::Text(want)) if got == want => {}
                (Err(e), Rendered::Refused { error }) if e.to_string().contains(error.as_str()) => {}
                (Ok(got), Rendered::Text(want)) => {
                    failures.push(format!("{name}, {case_name}: {}", difference(want, got)))
                }
                (Err(e), Rendered::Text(_)) => failures.push(format!("{name}, {case_name}: {e}")),
                (got, Rendered::Refused { error }) => {
                    let got = got.as_ref().map_or_else(ToString::to_string, |_| "a text".into());
                    failures.push(format!("{name}, {case_name}: want the error {error:?}, got {got}"));
                }
            }
        }
    }
    (count, failures)
}

/// Where two texts part, with what is around.
fn difference(want: &str, got: &str) -> String {
    let same = want.chars().zip(got.chars()).take_while(|(a, b)| a == b).count();
    let near = |text: &str| text.chars().skip(same.saturating_sub(60)).take(120).collect::<String>();
    format!("want {:?}, got {:?}", near(want), near(got))
}

#[test]
fn templates_render_as_in_transformers() {
    let (count, failures) = compare(&oracle("vectors/templates"));
    assert!(failures.is_empty(), "{} of {count} differ:\n{}", failures.len(), failures.join("\n"));
    assert!(count > 250, "only {count} renderings were compared");
}

/// The same over any templates put into `oracle/.large/templates`, where there are some.
#[test]
fn more_templates_render_as_in_transformers() {
    let folder = oracle(".large/templates");
    if !folder.join("rendered.json").exists() {
        return;
    }
    let (count, failures) = compare(&folder);
    assert!(failures.is_empty(), "{} of {count} differ:\n{}", failures.len(), failures.join("\n"));
}
