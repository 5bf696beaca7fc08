//! Memory for temporaries: taken, given back when the last view is dropped, and taken again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::buffer::Storage;
use super::{Buffer, Device};
use crate::Result;

/// Blocks of memory that temporaries of a stream, or of a plan, share over time.
///
/// A block may be handed out again while an earlier launch that uses it is still under way: the stream orders the two,
/// since it tracks hazards by memory and not by tensor.
#[derive(Default)]
pub(super) struct Arena {
    free: Mutex<HashMap<usize, Vec<Arc<Storage>>>>,
}

impl Arena {
    pub(super) fn take(self: &Arc<Self>, device: &Device, len: usize) -> Result<Buffer> {
        let len = size_class(len);
        let free = self.lock().get_mut(&len).and_then(Vec::pop);
        let storage = match free {
            Some(storage) => storage,
            None => device.allocate(len)?.storage().clone(),
        };
        Ok(Buffer::leased(storage, Arc::downgrade(self)))
    }

    pub(super) fn give_back(&self, storage: Arc<Storage>) {
        self.lock().entry(storage.memory.len).or_default().push(storage);
    }

    /// Frees the blocks that nothing uses.
    pub(super) fn trim(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<usize, Vec<Arc<Storage>>>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The size of block that serves `len` bytes: an eighth of a power of two up, so that at most 1/8 is wasted.
fn size_class(len: usize) -> usize {
    let step = (len.next_power_of_two() / 16).max(256);
    len.max(1).next_multiple_of(step)
}

#[cfg(test)]
mod tests {
    use super::size_class;

    #[test]
    fn size_classes_hold_what_is_asked_and_little_more() {
        for len in (0..5000).chain([1 << 20, (1 << 20) + 1, 123_456_789]) {
            let class = size_class(len);
            assert!(class >= len && class <= (len + len / 8).max(len + 256), "{len} -> {class}");
            assert_eq!(size_class(class), class, "a returned block serves its own class");
        }
    }
}
