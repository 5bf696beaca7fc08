//! The kernels that can be dispatched.

use super::Result;
use super::ops::rope_multi::{self, RopeMultiParams};
use crate::Device;
use crate::ops::{FallbackAxis, Pairing, RopeFrequencies, RopeMulti, RopeMultiMode, RopeSections};

/// The kernels that can be dispatched, and the tables that they were last given.
pub struct KernelRegistry {
    names: Vec<&'static str>,
    /// The latest last.
    tables: Vec<(Key, Device, RopeMulti)>,
}

/// What a table depends on; the bits of the base.
#[derive(PartialEq, Eq)]
struct Key(u32, u32, RopeMultiMode, [u32; 4]);

/// Tables kept: several models' worth, and a bound on what ever-new parameters can use.
const TABLES: usize = 32;

impl KernelRegistry {
    /// A registry with every kernel of this module.
    pub fn new() -> KernelRegistry {
        let mut registry = KernelRegistry { names: Vec::new(), tables: Vec::new() };
        rope_multi::register(&mut registry);
        registry
    }

    /// The names of the kernels.
    pub fn names(&self) -> &[&'static str] {
        &self.names
    }

    pub(super) fn register(&mut self, name: &'static str) {
        if !self.names.contains(&name) {
            self.names.push(name);
        }
    }

    /// The embedding of these parameters on `device`, made at its first use.
    pub(super) fn rope_multi(&mut self, device: &Device, p: &RopeMultiParams) -> Result<&RopeMulti> {
        let key = Key(p.freq_base.to_bits(), p.rope_dim, p.mode, p.sections);
        let found = self.tables.iter().position(|(k, d, _)| *k == key && d == device);
        let index = match found {
            Some(index) => index,
            None => {
                let frequencies = RopeFrequencies::new(p.rope_dim as usize, p.freq_base.into())?;
                let sections = RopeSections { mode: p.mode, sections: p.sections, fallback: FallbackAxis::Extra };
                let rope = RopeMulti::new(device, &frequencies, sections, Pairing::HeadHalves)?;
                if self.tables.len() == TABLES {
                    self.tables.remove(0);
                }
                self.tables.push((key, device.clone(), rope));
                self.tables.len() - 1
            }
        };
        Ok(&self.tables[index].2)
    }
}

impl Default for KernelRegistry {
    fn default() -> KernelRegistry {
        KernelRegistry::new()
    }
}
