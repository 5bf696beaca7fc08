//! `silicide devices`: what is here, and what is missing and why.

use std::io::Write;

use serde::Serialize;
use silicide::{Device, DeviceKind};

use crate::args::DevicesArgs;
use crate::engine;
use crate::rates;
use crate::report::{Column, Table, human_bytes};

#[derive(Serialize)]
struct Line {
    device: &'static str,
    available: bool,
    /// What it is, or why it is not there.
    description: String,
    /// Bytes a second that a GPU copies, read and written together, as measured.
    copy_bytes_per_second: Option<f64>,
}

/// Runs the subcommand.
pub fn devices(args: &DevicesArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let missing = |device, description| Line { device, available: false, description, copy_bytes_per_second: None };
    let line = |device, found: silicide::Result<Device>| match found {
        Ok(found) => {
            let measured = matches!(found.kind(), DeviceKind::Metal | DeviceKind::Cuda);
            let copy_bytes_per_second = measured.then(|| rates::copies(&found).ok()).flatten();
            Line { device, available: true, description: found.description(), copy_bytes_per_second }
        }
        Err(silicide::Error::Device { message, .. }) => missing(device, message),
        Err(error) => missing(device, error.to_string()),
    };
    let lines = [
        line("cpu", Ok(Device::cpu())),
        line("metal", Device::metal()),
        line("cuda", Device::cuda()),
        line("emulated-metal", Device::emulated_metal(engine::checked())),
        line("emulated-cuda", Device::emulated_cuda(engine::checked())),
    ];
    if args.json {
        serde_json::to_writer(&mut *out, &lines)?;
        return Ok(writeln!(out)?);
    }
    let mut table = Table::new([Column::left("device"), Column::left("here"), Column::left("")]);
    for line in &lines {
        let rate = line.copy_bytes_per_second.map(|rate| format!("; copies {}/s", human_bytes(rate as u64)));
        let description = line.description.clone() + &rate.unwrap_or_default();
        table.row([line.device, if line.available { "yes" } else { "no" }, &description]);
    }
    Ok(write!(out, "{table}")?)
}
