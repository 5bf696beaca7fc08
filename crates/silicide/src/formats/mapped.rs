//! Ranges of memory-mapped files.

use std::fs::File;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;
use std::{fmt, io};

use memmap2::{Mmap, MmapMut};

use crate::{Error, Result};

/// A range of a memory-mapped file. Clones share the map, which lives as long as the last of them.
///
/// Nothing is promised about alignment: safetensors files can start a tensor at any byte.
#[derive(Clone)]
pub struct Mapped {
    map: Arc<Mmap>,
    range: Range<usize>,
}

impl Mapped {
    /// Maps a whole file. See the [module](crate::formats) for what must not happen to it meanwhile.
    pub fn open(path: &Path) -> Result<Mapped> {
        let io = |e| Error::io(path, e);
        // A folder cannot be mapped and a named pipe would block, so look before opening.
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            return Err(Error::format(path, "file", "is not a regular file"));
        }
        let file = File::open(path).map_err(io)?;
        // SAFETY: the map is read-only. That nobody truncates or rewrites the file meanwhile is asked of the user.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        Ok(Mapped::whole(map))
    }

    /// Copies bytes into memory that no file backs, so that what reads maps can read them.
    pub fn copy_from(bytes: &[u8]) -> io::Result<Mapped> {
        let mut map = MmapMut::map_anon(bytes.len())?;
        map.copy_from_slice(bytes);
        Ok(Mapped::whole(map.make_read_only()?))
    }

    /// The bytes at `range`, counted from the start of this range, or `None` where it reaches past the end.
    pub fn slice(&self, range: Range<usize>) -> Option<Mapped> {
        if range.start > range.end || range.end > self.len() {
            return None;
        }
        let start = self.range.start;
        Some(Mapped { map: self.map.clone(), range: start + range.start..start + range.end })
    }

    /// The map that this is a range of: page-aligned, the whole file.
    pub fn map(&self) -> &Arc<Mmap> {
        &self.map
    }

    /// Where in [`map`](Self::map) this range lies, in bytes.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    fn whole(map: Mmap) -> Mapped {
        Mapped { range: 0..map.len(), map: Arc::new(map) }
    }
}

impl Deref for Mapped {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.map[self.range.clone()]
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Mapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mapped({} bytes at {})", self.len(), self.range.start)
    }
}
