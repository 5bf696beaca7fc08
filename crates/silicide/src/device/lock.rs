//! Who may touch a buffer's memory now.

use std::sync::atomic::{AtomicI32, Ordering};

/// A readers-writer lock held for the length of a launch or of a host copy.
///
/// Streams on several threads may share buffers; this is what makes that safe on devices that run kernels on the
/// host. Waiting spins and yields: holders are launches that end by themselves.
#[derive(Default)]
pub(super) struct Lock(AtomicI32);

const WRITER: i32 = -1;

impl Lock {
    pub(super) fn acquire(&self, write: bool) {
        let mut tries = 0u32;
        loop {
            let now = self.0.load(Ordering::Relaxed);
            let next = match (write, now) {
                (true, 0) => Some(WRITER),
                (false, 0..) => Some(now + 1),
                _ => None,
            };
            if let Some(next) = next
                && self.0.compare_exchange_weak(now, next, Ordering::Acquire, Ordering::Relaxed).is_ok()
            {
                return;
            }
            tries += 1;
            if tries < 64 { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
    }

    pub(super) fn release(&self, write: bool) {
        if write {
            self.0.store(0, Ordering::Release);
        } else {
            self.0.fetch_sub(1, Ordering::Release);
        }
    }
}
