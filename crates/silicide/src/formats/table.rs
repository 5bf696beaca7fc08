//! The tensor table of one file, checked once for every format.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::Mapped;
use crate::quant::GgmlFormat;
use crate::{DType, Error, Result, Shape};

/// A tensor as it lies in a file: its bytes are where they were, neither converted nor aligned.
#[derive(Clone, Debug)]
pub struct RawTensor {
    /// The file that holds it.
    pub path: Arc<Path>,
    /// Its name there.
    pub name: String,
    /// How its elements are stored.
    pub dtype: StoredType,
    /// Its dimensions, outermost first, in elements (not bytes or blocks).
    pub shape: Shape,
    /// Its bytes, row-major, as many as `dtype` and `shape` make.
    pub bytes: Mapped,
}

impl RawTensor {
    /// The element type of a tensor that is stored plainly.
    ///
    /// # Errors
    /// [`Error::Format`] for GGUF blocks and for types that no operation reads.
    pub fn dense(&self) -> Result<DType> {
        match &self.dtype {
            StoredType::Dense(dtype) => Ok(*dtype),
            other => {
                let known: Vec<_> = DType::ALL.iter().map(|d| d.name()).collect();
                Err(self.error(format!("is stored as {other}, wanted one of {}", known.join(", "))))
            }
        }
    }

    /// An error that names this tensor and its file.
    pub fn error(&self, message: impl Into<String>) -> Error {
        Error::format(&*self.path, &*self.name, message)
    }
}

/// How a file stores the elements of a tensor.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum StoredType {
    /// One element after the other.
    Dense(DType),
    /// GGUF blocks along the innermost dimension.
    Ggml(GgmlFormat),
    /// A type that no operation reads, by the name that its format has for it. The tensor can be listed and its bytes
    /// taken; the rest of the file is as good as any.
    Other(Cow<'static, str>),
}

impl fmt::Display for StoredType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoredType::Dense(dtype) => dtype.fmt(f),
            StoredType::Ggml(format) => f.write_str(format.name()),
            StoredType::Other(name) => f.write_str(name),
        }
    }
}

/// A line of a [`TensorTable`].
#[derive(Clone, Debug, PartialEq)]
pub struct TensorEntry {
    /// The tensor's name: neither empty nor with control characters.
    pub name: String,
    /// How its elements are stored.
    pub dtype: StoredType,
    /// Its dimensions, outermost first, in elements.
    pub shape: Shape,
    /// Its bytes, counted from the start of the file. Where the size of the type is unknown, all up to the next tensor.
    pub span: Range<usize>,
}

/// The tensors of one file.
///
/// Names are unique, spans lie within the file and overlap nowhere. Gaps between spans are allowed: writers that align
/// tensors leave them.
#[derive(Clone, Debug)]
pub struct TensorTable {
    path: Arc<Path>,
    bytes: Mapped,
    entries: Vec<TensorEntry>,
    /// Indices of `entries`, sorted by name.
    by_name: Vec<u32>,
}

impl TensorTable {
    /// Checks what every format promises: unique names, bounds, no overlap. Each name was checked when it was read.
    pub(super) fn new(path: &Path, bytes: Mapped, entries: Vec<TensorEntry>) -> Result<TensorTable> {
        let error = |e: &TensorEntry, message: String| Err(Error::format(path, &*e.name, message));
        for e in &entries {
            if e.span.start > e.span.end || e.span.end > bytes.len() {
                let Range { start, end } = e.span;
                return error(e, format!("takes bytes {start} to {end}, the file has {}: is it whole?", bytes.len()));
            }
        }
        let Ok(count) = u32::try_from(entries.len()) else {
            return Err(Error::format(path, "tensors", format!("{} is too many", entries.len())));
        };

        let mut order: Vec<u32> = (0..count).collect();
        let entry = |i: u32| &entries[i as usize];
        order.retain(|&i| !entry(i).span.is_empty());
        order.sort_unstable_by_key(|&i| entry(i).span.start);
        for pair in order.windows(2) {
            let (a, b) = (entry(pair[0]), entry(pair[1]));
            if b.span.start < a.span.end {
                return error(b, format!("bytes {:?} overlap those of {:?}, {:?}", b.span, a.name, a.span));
            }
        }

        let mut by_name: Vec<u32> = (0..count).collect();
        by_name.sort_unstable_by_key(|&i| &entry(i).name);
        if let Some(pair) = by_name.windows(2).find(|pair| entry(pair[0]).name == entry(pair[1]).name) {
            return error(entry(pair[0]), "is there twice".into());
        }
        Ok(TensorTable { path: path.into(), bytes, entries, by_name })
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<RawTensor> {
        let entry = |i: u32| &self.entries[i as usize];
        let at = self.by_name.binary_search_by(|&i| entry(i).name.as_str().cmp(name)).ok()?;
        Some(self.tensor(entry(self.by_name[at])))
    }

    /// All entries, in the order of the file's table.
    pub fn entries(&self) -> &[TensorEntry] {
        &self.entries
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn tensor(&self, entry: &TensorEntry) -> RawTensor {
        RawTensor {
            path: self.path.clone(),
            name: entry.name.clone(),
            dtype: entry.dtype.clone(),
            shape: entry.shape,
            bytes: self.bytes.slice(entry.span.clone()).expect("spans were checked against the file"),
        }
    }
}

/// Names end up in messages, paths and terminals: control characters in them are an attack or an accident.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    match name {
        "" => Err("is empty".into()),
        _ if name.contains(char::is_control) => Err(format!("{name:?} has control characters")),
        _ => Ok(()),
    }
}
