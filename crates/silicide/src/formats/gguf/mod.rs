//! GGUF, the format of ggml and llama.cpp: typed metadata, a tensor table, aligned data, all in one file.
//!
//! Versions 2 and 3 in little-endian order are read. The format is defined in ggml's [gguf.md]; numbers and block sizes
//! of tensor types are those of `ggml.h`. A model can be split over files named `-00001-of-0000N.gguf`, each with its
//! own tensor table, the first with the metadata: [`open_split`] takes any of them.
//!
//! [gguf.md]: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

mod metadata;
mod types;

use std::path::{Path, PathBuf};

pub use metadata::{Array, FromValue, Kind, Metadata, Value};

use self::metadata::Cursor;
use super::table::check_name;
use super::{Mapped, StoredType, TensorEntry, TensorTable};
use crate::{MAX_RANK, Result, Shape};

/// An open GGUF file.
#[derive(Clone, Debug)]
pub struct GgufFile {
    /// The metadata.
    pub metadata: Metadata,
    /// The tensors; dimensions are outermost first, the reverse of the file's order.
    pub tensors: TensorTable,
}

impl GgufFile {
    /// Maps a file and reads its header and tables. One part of a split model is read by itself.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io), or [`Error::Format`](crate::Error::Format) naming the key or the tensor for a file of another version or byte order,
    /// one that is truncated, has a name twice, or gives spans that overlap or leave the file.
    pub fn open(path: &Path) -> Result<GgufFile> {
        GgufFile::parse(path, Mapped::open(path)?)
    }

    /// As [`open`](Self::open), of bytes that are mapped already; `path` is for messages.
    pub fn parse(path: &Path, bytes: Mapped) -> Result<GgufFile> {
        let mut cursor = Cursor::new(path, &bytes);
        read_version(&mut cursor)?;
        let tensor_count = cursor.u64(format_args!("tensor count"))?;
        let metadata = Metadata::read(&mut cursor, bytes.clone())?;
        let alignment = metadata.find::<u64>(ALIGNMENT)?.unwrap_or(32);
        if !alignment.is_power_of_two() {
            return Err(metadata.error(ALIGNMENT, format!("is {alignment}, wanted a power of two")));
        }
        let mut entries = Vec::new();
        for i in 0..tensor_count {
            entries.push(read_entry(&mut cursor, i, alignment)?);
        }
        let data_start = (cursor.position() as u64).checked_next_multiple_of(alignment).unwrap_or(u64::MAX) as usize;
        for TensorEntry { span, .. } in &mut entries {
            *span = span.start.saturating_add(data_start)..span.end.saturating_add(data_start);
        }
        close_unknown_spans(&mut entries, bytes.len());
        Ok(GgufFile { metadata, tensors: TensorTable::new(path, bytes, entries)? })
    }
}

/// Opens every part of a split model, in order, given any of them; a file that is not split is its only part.
///
/// # Errors
/// As [`GgufFile::open`], and [`Error::Format`](crate::Error::Format) naming the parts that are missing or that do not belong together.
pub fn open_split(path: &Path) -> Result<Vec<GgufFile>> {
    let file = GgufFile::open(path)?;
    let count = file.metadata.find::<u16>(SPLIT_COUNT)?.unwrap_or(1);
    if count < 2 {
        return Ok(vec![file]);
    }
    let Some(parts) = part_paths(path, count) else {
        let message = format!("is {count}, so the name should end in -00001-of-{count:05}.gguf or another number");
        return Err(file.metadata.error(SPLIT_COUNT, message));
    };
    let missing: Vec<_> = parts.iter().filter(|p| !p.exists()).map(|p| p.display().to_string()).collect();
    if !missing.is_empty() {
        let shown = missing[..missing.len().min(3)].join(", ");
        let more = if missing.len() > 3 { ", ..." } else { "" };
        let message = format!("{} of {count} parts are missing: {shown}{more}", missing.len());
        return Err(file.metadata.error(SPLIT_COUNT, message));
    }
    let files = parts.iter().map(|part| GgufFile::open(part)).collect::<Result<Vec<_>>>()?;
    for (i, file) in files.iter().enumerate() {
        let wanted = [(SPLIT_NO, i as u64), (SPLIT_COUNT, count.into())];
        for (key, wanted) in wanted {
            let got = file.metadata.get::<u64>(key)?;
            if got != wanted {
                return Err(file.metadata.error(key, format!("is {got}, the file's name says {wanted}")));
            }
        }
    }
    let tensors: usize = files.iter().map(|f| f.tensors.entries().len()).sum();
    let metadata = &files[0].metadata;
    if let Some(wanted) = metadata.find::<usize>(SPLIT_TENSORS)?
        && wanted != tensors
    {
        return Err(metadata.error(SPLIT_TENSORS, format!("is {wanted}, the {count} parts have {tensors}")));
    }
    Ok(files)
}

const ALIGNMENT: &str = "general.alignment";
const SPLIT_NO: &str = "split.no";
const SPLIT_COUNT: &str = "split.count";
const SPLIT_TENSORS: &str = "split.tensors.count";

fn read_version(cursor: &mut Cursor<'_>) -> Result<()> {
    let magic = cursor.take(4, format_args!("magic"))?;
    if magic != b"GGUF" {
        return Err(cursor.error("magic", format!("is {:?}, wanted \"GGUF\"", magic.escape_ascii().to_string())));
    }
    let version = cursor.u32(format_args!("version"))?;
    match version {
        2 | 3 => Ok(()),
        _ if (1..=0xFFFF).contains(&version.swap_bytes()) => {
            Err(cursor.error("version", "the file is big-endian; convert it with gguf-py's gguf_convert_endian.py"))
        }
        _ => Err(cursor.error("version", format!("is {version}, wanted 2 or 3; convert the model anew"))),
    }
}

/// The paths of all parts, or `None` where `path` is not named like one of `count`.
fn part_paths(path: &Path, count: u16) -> Option<Vec<PathBuf>> {
    let name = path.file_name()?.to_str()?.strip_suffix(&format!("-of-{count:05}.gguf"))?;
    let (prefix, number) = name.rsplit_once('-')?;
    let in_range = number.len() == 5 && number.parse::<u16>().is_ok_and(|n| (1..=count).contains(&n));
    in_range.then(|| (1..=count).map(|n| path.with_file_name(format!("{prefix}-{n:05}-of-{count:05}.gguf"))).collect())
}

/// Reads a line of the tensor table; the span counts from the start of the data, for now. A tensor whose type has an
/// unknown size ends where it starts.
fn read_entry(cursor: &mut Cursor<'_>, index: u64, alignment: u64) -> Result<TensorEntry> {
    let name = cursor.string(format_args!("name of tensor {index}"))?.to_owned();
    check_name(&name).map_err(|message| cursor.error("tensor name", message))?;
    let rank = cursor.u32(format_args!("{name}: dimension count"))? as usize;
    if rank > MAX_RANK {
        return Err(cursor.error(name, format!("has {rank} dimensions, at most {MAX_RANK} are possible")));
    }
    let mut dims = [0; MAX_RANK];
    // ggml lists the innermost dimension first.
    for dim in dims[..rank].iter_mut().rev() {
        let value = cursor.u64(format_args!("{name}: dimensions"))?;
        *dim = usize::try_from(value).map_err(|_| cursor.error(&*name, format!("dimension {value} is too large")))?;
    }
    let shape = Shape::new(&dims[..rank]).expect("the rank was checked");
    let (dtype, block) = types::stored_type(cursor.u32(format_args!("{name}: type"))?);
    let offset = cursor.u64(format_args!("{name}: offset"))?;

    let error = |message: String| cursor.error(&*name, message);
    if offset % alignment != 0 {
        return Err(error(format!("offset {offset} is not a multiple of the alignment, {alignment}")));
    }
    let overflow = || error(format!("{dtype} {shape} at offset {offset} overflows"));
    let elements = shape.checked_elements().ok_or_else(overflow)?;
    let length = match block {
        None => 0,
        Some((block, bytes)) => {
            let row = shape.last().copied().unwrap_or(1);
            if row % block != 0 {
                return Err(error(format!("rows have {row} elements, {dtype} wants a multiple of {block}")));
            }
            (elements / block).checked_mul(bytes).ok_or_else(overflow)?
        }
    };
    let start = usize::try_from(offset).map_err(|_| overflow())?;
    let end = start.checked_add(length).ok_or_else(overflow)?;
    Ok(TensorEntry { name, dtype, shape, span: start..end })
}

/// Lets tensors whose size is unknown reach to the next tensor, or to the end of the file.
fn close_unknown_spans(entries: &mut [TensorEntry], file_len: usize) {
    let unknown = |e: &TensorEntry| matches!(&e.dtype, StoredType::Other(name) if name.starts_with(types::UNKNOWN));
    if !entries.iter().any(unknown) {
        return;
    }
    let mut starts: Vec<usize> = entries.iter().map(|e| e.span.start).collect();
    starts.sort_unstable();
    for e in entries.iter_mut().filter(|e| unknown(e)) {
        let next = starts.partition_point(|&start| start <= e.span.start);
        e.span.end = starts.get(next).copied().unwrap_or(file_len);
    }
}
