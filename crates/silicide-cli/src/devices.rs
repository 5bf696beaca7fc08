//! `silicide devices`: what is here, and what is missing and why.

use std::io::Write;

use serde::Serialize;
use silicide::Device;

use crate::args::DevicesArgs;
use crate::engine;
use crate::report::{Column, Table};

#[derive(Serialize)]
struct Line {
    device: &'static str,
    available: bool,
    /// What it is, or why it is not there.
    description: String,
}

/// Runs the subcommand.
pub fn devices(args: &DevicesArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let line = |device, found: silicide::Result<Device>| match found {
        Ok(found) => Line { device, available: true, description: found.description() },
        Err(silicide::Error::Device { message, .. }) => Line { device, available: false, description: message },
        Err(error) => Line { device, available: false, description: error.to_string() },
    };
    let lines = [
        line("cpu", Ok(Device::cpu())),
        line("metal", Device::metal()),
        line("cuda", Device::cuda()),
        line("emulated-metal", engine::emulated_metal()),
    ];
    if args.json {
        serde_json::to_writer(&mut *out, &lines)?;
        return Ok(writeln!(out)?);
    }
    let mut table = Table::new([Column::left("device"), Column::left("here"), Column::left("")]);
    for line in &lines {
        table.row([line.device, if line.available { "yes" } else { "no" }, &line.description]);
    }
    Ok(write!(out, "{table}")?)
}
