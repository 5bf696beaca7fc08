//! `silicide inspect`: what is in a checkpoint, from its headers alone.

use std::io::Write;

use silicide_lm::Inspection;

use crate::args::InspectArgs;
use crate::model::Library;
use crate::report::{Column, Table, human_bytes, human_count};

/// Runs the subcommand.
pub fn inspect(args: &InspectArgs, library: &Library, out: &mut dyn Write) -> anyhow::Result<()> {
    let path = library.locate(&args.model)?;
    let mut found = Inspection::of(&path)?;
    if args.json {
        if !args.tensors {
            found.tensors.clear();
        }
        serde_json::to_writer(&mut *out, &found)?;
        return Ok(writeln!(out)?);
    }
    let mut facts = Table::new([Column::left("fact"), Column::left("value")]);
    let or_unknown = |n: Option<u64>| n.map_or("unknown".into(), |n| n.to_string());
    facts.row(["path", &path.display().to_string()]);
    facts.row(["format", &found.format]);
    facts.row(["architecture", found.architecture.as_deref().unwrap_or("unknown")]);
    facts.row(["runs here", if found.supported { "yes" } else { "no: there is no such architecture here yet" }]);
    facts.row(["parameters", &human_count(found.parameters)]);
    facts.row(["weights", &human_bytes(found.weight_bytes)]);
    facts.row(["layers", &or_unknown(found.layers)]);
    facts.row(["hidden size", &or_unknown(found.hidden_size)]);
    facts.row(["context", &or_unknown(found.context)]);
    if let Some(bytes) = found.cache_bytes_per_token {
        facts.row(["cache", &format!("{} a token at 16 bits", human_bytes(bytes))]);
    }
    if let Some(bytes) = found.memory_bytes {
        facts.row(["memory needed", &format!("about {} with 4096 tokens of context", human_bytes(bytes))]);
    }
    facts.row(["tokenizer", &found.tokenizer]);
    facts.row(["vocabulary", &or_unknown(found.vocabulary)]);
    for (name, token) in [("begins with", &found.begins_with), ("ends with", &found.ends_with)] {
        facts.row([name, token.as_deref().unwrap_or("no token")]);
    }
    let template = match found.template_variables.as_slice() {
        _ if !found.chat_template => "no".into(),
        [] => "yes".into(),
        variables => format!("yes, and takes {}", variables.join(", ")),
    };
    facts.row(["chat template", &template]);
    write!(out, "{facts}")?;

    let mut formats = Table::new([
        Column::left("stored as"),
        Column::right("tensors"),
        Column::right("parameters"),
        Column::right("bytes"),
        Column::left("where"),
    ]);
    for line in &found.formats {
        formats.row([
            line.format.clone(),
            line.tensors.to_string(),
            human_count(line.parameters),
            human_bytes(line.bytes),
            line.places.join(", "),
        ]);
    }
    write!(out, "\n{formats}")?;
    if args.tensors {
        let mut tensors = Table::new([
            Column::left("tensor"),
            Column::left("stored as"),
            Column::left("shape"),
            Column::right("bytes"),
        ]);
        for t in &found.tensors {
            tensors.row([t.name.clone(), t.format.clone(), format!("{:?}", t.shape), human_bytes(t.bytes)]);
        }
        write!(out, "\n{tensors}")?;
    }
    for warning in &found.warnings {
        writeln!(out, "\nwarning: {warning}")?;
    }
    Ok(())
}
