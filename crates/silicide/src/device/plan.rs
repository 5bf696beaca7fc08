//! A recorded list of launches, replayed with other inputs in the same memory.

use std::any::Any;
use std::sync::{Arc, OnceLock};

use super::Device;
use super::arena::Arena;
use super::hazard::Hazards;
use super::launch::{Cost, Launch, LockSet};
use crate::Result;

/// Launches with fixed shapes over fixed memory, made by [`Stream::record`](super::Stream::record) and run by
/// [`Stream::replay`](super::Stream::replay).
///
/// Between replays only the contents of tensors change: token ids, positions, lengths. A replay allocates nothing and
/// compiles nothing.
pub struct Plan {
    launches: Vec<Launch>,
    /// Whether a barrier comes before each launch.
    barriers: Vec<bool>,
    locks: LockSet,
    /// What a back end has made of the launches, to replay them as one. Dropped before their memory.
    compiled: OnceLock<Box<dyn Any + Send + Sync>>,
    /// Keeps the temporaries' memory.
    _arena: Arc<Arena>,
}

impl Plan {
    pub(super) fn new(launches: Vec<Launch>, arena: Arc<Arena>) -> Plan {
        let mut hazards = Hazards::default();
        let barriers = launches.iter().map(|launch| hazards.note(&launch.args)).collect();
        let locks = LockSet::new(launches.iter().flat_map(|l| &l.args));
        Plan { launches, barriers, locks, compiled: OnceLock::new(), _arena: arena }
    }

    /// The launches, in order.
    pub fn launches(&self) -> &[Launch] {
        &self.launches
    }

    /// The device of its memory; None where there is no launch.
    pub(super) fn device(&self) -> Option<&Device> {
        self.launches.first().and_then(|launch| launch.args.first()).map(|arg| &arg.storage.device)
    }

    /// How many barriers separate the launches on a device that runs them concurrently.
    pub fn barriers(&self) -> usize {
        self.barriers.iter().filter(|&&b| b).count()
    }

    /// What all launches together must move and compute.
    pub fn cost(&self) -> Cost {
        self.launches.iter().fold(Cost::default(), |sum, l| Cost {
            read: sum.read + l.cost.read,
            written: sum.written + l.cost.written,
            flops: sum.flops + l.cost.flops,
        })
    }

    /// What a back end makes of the launches once, for all replays.
    pub(super) fn compiled<T: Any + Send + Sync>(
        &self,
        make: impl FnOnce() -> Result<T>,
    ) -> Result<&(dyn Any + Send + Sync)> {
        if self.compiled.get().is_none() {
            // Where another thread was faster its own serves as well.
            let _ = self.compiled.set(Box::new(make()?));
        }
        Ok(&**self.compiled.get().expect("set above"))
    }

    /// The locks of every buffer that any launch touches.
    pub(super) fn locks(&self) -> &LockSet {
        &self.locks
    }

    pub(super) fn steps(&self) -> impl Iterator<Item = (&Launch, bool)> {
        self.launches.iter().zip(self.barriers.iter().copied())
    }
}
