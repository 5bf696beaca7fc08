//! Metal kernels run on the host.

use std::sync::Arc;

use super::buffer::Memory;
use super::{DeviceKind, Executor, HostBytes, Queue};
use crate::{Error, Result};

/// How the emulated Metal device runs.
#[derive(Clone, Debug, Default)]
pub struct EmulatedOptions {
    /// Check every memory access, and hunt for races.
    pub checks: bool,
    /// Shuffle schedules by this seed.
    pub seed: Option<u64>,
}

pub(super) struct EmulatedMetal;

impl EmulatedMetal {
    pub(super) fn new(_options: EmulatedOptions) -> Result<EmulatedMetal> {
        Err(Error::Device { device: "emulated-metal".into(), message: "soon".into() })
    }
}

impl Executor for EmulatedMetal {
    fn kind(&self) -> DeviceKind {
        DeviceKind::EmulatedMetal
    }
    fn description(&self) -> String {
        "Metal kernels on the host".into()
    }
    fn allocate(&self, len: usize) -> Result<Memory> {
        Memory::host(len).ok_or_else(|| Error::OutOfMemory { device: "emulated-metal".into(), wanted: len })
    }
    fn adopt(&self, bytes: &Arc<dyn HostBytes>) -> Result<Option<Memory>> {
        Ok(Some(Memory::adopted(bytes)))
    }
    fn queue(&self) -> Box<dyn Queue> {
        unreachable!()
    }
}
