//! Memory of the host.

use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use memmap2::MmapMut;

use super::buffer::Memory;

/// Where blocks begin: at cache lines, which suits every vector.
const ALIGNMENT: usize = 64;

/// The size of a huge page.
const HUGE: usize = 2 << 20;

impl Memory {
    /// Zeroed host memory, or `None` where there is not enough.
    pub(super) fn host(len: usize) -> Option<Memory> {
        if len >= 2 * HUGE {
            let pages = Pages::new(len)?;
            return Some(Memory { ptr: pages.ptr, len, owner: Box::new(pages) });
        }
        let block = Block::zeroed(len)?;
        Some(Memory { ptr: block.ptr, len, owner: Box::new(block) })
    }
}

/// Blocks that live long and are read together, such as a model's weights: laid one after another in large pieces, so
/// that small ones lie in huge pages too.
#[derive(Default)]
pub(super) struct Slabs(Mutex<Slab>);

#[derive(Default)]
struct Slab {
    pages: Weak<Pages>,
    used: usize,
}

impl Slabs {
    const SIZE: usize = 32 << 20;

    /// As [`Memory::host`]. The memory goes back to the system with the last block of its slab.
    pub(super) fn take(&self, len: usize) -> Option<Memory> {
        if len > Self::SIZE / 2 {
            return Memory::host(len);
        }
        let mut slab = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let pages = match slab.pages.upgrade() {
            Some(pages) if slab.used + len <= Self::SIZE => pages,
            _ => {
                let pages = Arc::new(Pages::new(Self::SIZE)?);
                *slab = Slab { pages: Arc::downgrade(&pages), used: 0 };
                pages
            }
        };
        // SAFETY: `used + len` is at most the slab's size.
        let ptr = unsafe { pages.ptr.add(slab.used) };
        slab.used = (slab.used + len).next_multiple_of(ALIGNMENT);
        Some(Memory { ptr, len, owner: Box::new(pages) })
    }
}

/// Zeroed memory straight from the system, which gives pages when they are first touched: in huge pages, for fewer address
/// translations, where there are any.
struct Pages {
    ptr: NonNull<u8>,
    _map: MmapMut,
}

impl Pages {
    fn new(len: usize) -> Option<Pages> {
        let mut map = MmapMut::map_anon(len.checked_next_multiple_of(HUGE)?.checked_add(HUGE)?).ok()?;
        let start = map.as_ptr().align_offset(HUGE);
        #[cfg(target_os = "linux")]
        // Advice may be refused, and then nothing is lost.
        let _ = map.advise_range(memmap2::Advice::HugePage, start, len.next_multiple_of(HUGE));
        Some(Pages { ptr: NonNull::from(&mut map[start..]).cast(), _map: map })
    }
}

// SAFETY: plain memory.
unsafe impl Send for Pages {}
// SAFETY: plain memory.
unsafe impl Sync for Pages {}

/// Zeroed memory from the allocator.
struct Block {
    ptr: NonNull<u8>,
    layout: Layout,
}

impl Block {
    fn zeroed(len: usize) -> Option<Block> {
        let layout = Layout::from_size_align(len.max(1), ALIGNMENT).ok()?;
        // SAFETY: the layout's size is not zero.
        let ptr = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) })?;
        Some(Block { ptr, layout })
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated by `zeroed` with this layout, and freed once.
        unsafe { std::alloc::dealloc(self.ptr.as_ptr(), self.layout) }
    }
}

// SAFETY: plain memory.
unsafe impl Send for Block {}
// SAFETY: plain memory.
unsafe impl Sync for Block {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_a_slab_are_zeroed_aligned_and_apart() {
        let slabs = Slabs::default();
        let sizes = [1, 63, 64, 65, 5 << 20, 15 << 20, 15 << 20, 40 << 20, 0];
        let blocks: Vec<_> = sizes.map(|len| slabs.take(len).expect("there is memory")).into_iter().collect();
        let mut ranges: Vec<_> = blocks.iter().map(|b| (b.ptr.addr().get(), b.len)).collect();
        for &(start, _) in &ranges {
            assert!(start.is_multiple_of(ALIGNMENT));
        }
        ranges.sort_unstable();
        assert!(ranges.windows(2).all(|w| w[0].0 + w[0].1 <= w[1].0));
        for block in &blocks {
            // SAFETY: the block is alive and this test's own.
            let bytes = unsafe { std::slice::from_raw_parts_mut(block.ptr.as_ptr(), block.len) };
            assert!(bytes.iter().all(|&b| b == 0));
            bytes.fill(1);
        }
    }

    #[test]
    fn a_slab_goes_with_its_last_block() {
        let slabs = Slabs::default();
        let (a, b) = (slabs.take(100), slabs.take(100));
        drop(a);
        assert!(slabs.0.lock().unwrap().pages.upgrade().is_some());
        drop(b);
        assert!(slabs.0.lock().unwrap().pages.upgrade().is_none());
    }
}
