//! Device memory with an owner.

use std::any::Any;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Arc, Weak};

use super::arena::Arena;
use super::lock::Lock;
use super::{Device, HostBytes};
use crate::Result;

/// A piece of device memory. Cloning gives another handle to the same memory.
#[derive(Clone)]
pub struct Buffer {
    storage: Arc<Storage>,
    /// Returns temporary memory to its arena once the last handle is gone.
    _lease: Option<Arc<Lease>>,
}

impl Buffer {
    pub(super) fn new(storage: Storage) -> Buffer {
        Buffer { storage: Arc::new(storage), _lease: None }
    }

    pub(super) fn leased(storage: Arc<Storage>, arena: Weak<Arena>) -> Buffer {
        let lease = Lease { storage: storage.clone(), arena };
        Buffer { storage, _lease: Some(Arc::new(lease)) }
    }

    /// The size in bytes.
    pub fn len(&self) -> usize {
        self.storage.memory.len
    }

    /// Whether it holds no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The device that holds it.
    pub fn device(&self) -> &Device {
        &self.storage.device
    }

    /// Whether two handles are to the same memory.
    pub fn is_same(&self, other: &Buffer) -> bool {
        Arc::ptr_eq(&self.storage, &other.storage)
    }

    pub(crate) fn address(&self) -> usize {
        self.storage.memory.ptr.as_ptr() as usize
    }

    pub(crate) fn storage(&self) -> &Arc<Storage> {
        &self.storage
    }

    /// Calls `f` with a range of the bytes, which the host reaches, while nothing writes them.
    pub(crate) fn host_read<R>(&self, range: Range<usize>, f: impl FnOnce(&[u8]) -> R) -> R {
        self.storage.read_locked(|memory| f(&memory[range]))
    }

    /// Calls `f` to fill the bytes, which the host reaches, while nothing else touches them.
    pub(crate) fn host_fill<R>(&self, f: impl FnOnce(&mut [u8]) -> R) -> R {
        self.storage.write_locked(f)
    }

    /// The bytes.
    ///
    /// # Safety
    ///
    /// Nothing writes them while the slice is used.
    pub(crate) unsafe fn bytes(&self) -> &[u8] {
        assert!(self.storage.device.0.shares_memory(), "the device has memory of its own");
        // SAFETY: the memory is `len` bytes for as long as `self`; the caller keeps writers out.
        unsafe { std::slice::from_raw_parts(self.storage.memory.ptr.as_ptr(), self.len()) }
    }

    /// The bytes, where this is the only handle to the memory, so that no view and no launch can reach it.
    pub(crate) fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        let storage = Arc::get_mut(&mut self.storage).filter(|s| !s.read_only)?;
        assert!(storage.device.0.shares_memory(), "the device has memory of its own");
        // SAFETY: the memory is `len` bytes and ours to write; `storage` is borrowed for as long as the slice.
        Some(unsafe { std::slice::from_raw_parts_mut(storage.memory.ptr.as_ptr(), storage.memory.len) })
    }

    /// Copies host bytes in, while nothing else touches the buffer.
    pub(super) fn host_write(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.storage.write(offset, bytes)
    }
}

/// Memory, the lock that says who touches it, and the device it belongs to.
pub(crate) struct Storage {
    pub(super) device: Device,
    pub(super) memory: Memory,
    pub(super) lock: Lock,
    /// Mapped files and other adopted bytes are never written.
    pub(super) read_only: bool,
}

impl Storage {
    pub(super) fn new(device: Device, memory: Memory, read_only: bool) -> Storage {
        Storage { device, memory, lock: Lock::default(), read_only }
    }

    /// Calls `f` with a range of the bytes, or a copy of it where the host does not reach the memory, while nothing writes
    /// them.
    pub(super) fn read<R>(&self, range: Range<usize>, f: impl FnOnce(&[u8]) -> R) -> Result<R> {
        if self.device.0.shares_memory() {
            return Ok(self.read_locked(|memory| f(&memory[range])));
        }
        let mut copy = vec![0; range.len()];
        self.device.0.download(&self.memory, range.start, &mut copy)?;
        Ok(f(&copy))
    }

    /// Copies host bytes in, while nothing else touches the memory.
    pub(super) fn write(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        if self.device.0.shares_memory() {
            self.write_locked(|memory| memory[offset..offset + bytes.len()].copy_from_slice(bytes));
            return Ok(());
        }
        self.device.0.upload(&self.memory, offset, bytes)
    }

    /// Calls `f` with the bytes, which the host reaches, while nothing writes them.
    fn read_locked<R>(&self, f: impl FnOnce(&[u8]) -> R) -> R {
        assert!(self.device.0.shares_memory(), "the device has memory of its own");
        self.lock.acquire(false);
        // SAFETY: the memory is `len` bytes for as long as `self`; the lock keeps writers out.
        let bytes = unsafe { std::slice::from_raw_parts(self.memory.ptr.as_ptr(), self.memory.len) };
        let result = f(bytes);
        self.lock.release(false);
        result
    }

    /// Calls `f` with the bytes, which the host reaches, while nothing else touches them.
    fn write_locked<R>(&self, f: impl FnOnce(&mut [u8]) -> R) -> R {
        assert!(self.device.0.shares_memory(), "the device has memory of its own");
        assert!(!self.read_only, "adopted memory is never written");
        self.lock.acquire(true);
        // SAFETY: the memory is `len` bytes for as long as `self` and ours to write; the lock keeps everyone else out.
        let bytes = unsafe { std::slice::from_raw_parts_mut(self.memory.ptr.as_ptr(), self.memory.len) };
        let result = f(bytes);
        self.lock.release(true);
        result
    }
}

/// Memory by its address on the device, which most devices share with the host, and what keeps it alive.
pub(crate) struct Memory {
    pub(super) ptr: NonNull<u8>,
    pub(super) len: usize,
    /// The allocation, the mapped file, or the back end's own buffer object.
    #[cfg_attr(not(target_os = "macos"), allow(dead_code))]
    pub(super) owner: Box<dyn Any + Send + Sync>,
}

// SAFETY: the pointer is to memory that `owner` keeps; who may touch it when is the lock's business.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Bytes that somebody else owns.
    pub(super) fn adopted(bytes: &Arc<dyn HostBytes>) -> Memory {
        let slice = bytes.as_ref().as_ref();
        Memory { ptr: NonNull::from(slice).cast(), len: slice.len(), owner: Box::new(bytes.clone()) }
    }
}

struct Lease {
    storage: Arc<Storage>,
    arena: Weak<Arena>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(arena) = self.arena.upgrade() {
            arena.give_back(self.storage.clone());
        }
    }
}
