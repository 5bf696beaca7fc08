//! The safetensors format: a length, a JSON header, bytes.
//!
//! A file is a little-endian `u64` n, then n bytes of JSON that map each tensor's name to `dtype`, `shape` and
//! `data_offsets` (counted from the end of the header), then the data. `__metadata__` maps strings to strings. The
//! format's home is the [safetensors] project. This reader is as strict as that one but for gaps between tensors, which it
//! allows, and for types it has never heard of, which concern only the tensors that have them.
//!
//! MLX writes tensors in hash order after a header of any length, so data can start at any byte.
//!
//! [safetensors]: https://github.com/huggingface/safetensors#format

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor};

use super::table::check_name;
use super::{Mapped, StoredType, TensorEntry, TensorTable};
use crate::{DType, Error, MAX_RANK, Result, Shape};

/// The longest header that is read, in bytes: the limit of the format's own library.
pub const MAX_HEADER: usize = 100_000_000;

const METADATA: &str = "__metadata__";

/// An open safetensors file.
///
/// ```
/// use silicide::formats::safetensors::{self, SafetensorsFile, TensorData};
/// use silicide::{DType, Shape};
///
/// # let dir = tempfile::tempdir()?;
/// let path = dir.path().join("weights.safetensors");
/// let bytes: Vec<u8> = [1.0f32, 2.0, 3.0].iter().flat_map(|x| x.to_le_bytes()).collect();
/// safetensors::write(&path, &[TensorData { name: "w", dtype: DType::F32, shape: Shape::from([3]), bytes: &bytes }], &[])?;
///
/// let file = SafetensorsFile::open(&path)?;
/// let w = file.tensors.get("w").unwrap();
/// assert_eq!((w.dense()?, w.shape, &w.bytes[..]), (DType::F32, Shape::from([3]), &bytes[..]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct SafetensorsFile {
    /// What `__metadata__` holds.
    pub metadata: BTreeMap<String, String>,
    /// The tensors.
    pub tensors: TensorTable,
}

impl SafetensorsFile {
    /// Maps a file and reads its header.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Format`] naming the tensor for a file that is truncated or whose header is not JSON,
    /// has a name or a key twice, or gives spans that overlap, leave the file, or do not fit the shape and the dtype.
    pub fn open(path: &Path) -> Result<SafetensorsFile> {
        SafetensorsFile::parse(path, Mapped::open(path)?)
    }

    /// As [`open`](Self::open), of bytes that are mapped already; `path` is for messages.
    pub fn parse(path: &Path, bytes: Mapped) -> Result<SafetensorsFile> {
        let (header, data_start) = header(path, &bytes)?;
        let mut field = String::from("header");
        let mut json = serde_json::Deserializer::from_str(header);
        let header = HeaderSeed { data_start, field: &mut field }.deserialize(&mut json);
        let (metadata, entries) = header
            .and_then(|header| json.end().map(|()| header))
            .map_err(|e| Error::format(path, field, e.to_string()))?;
        Ok(SafetensorsFile { metadata, tensors: TensorTable::new(path, bytes, entries)? })
    }
}

/// The header's text, and where the data starts.
fn header<'a>(path: &Path, bytes: &'a [u8]) -> Result<(&'a str, usize)> {
    let error = |message: String| Error::format(path, "header", message);
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(error(format!("a file of {} bytes is too short to have one", bytes.len())));
    };
    let length = u64::from_le_bytes(*length);
    let Some(header) = usize::try_from(length).ok().filter(|&n| n <= MAX_HEADER).and_then(|n| rest.get(..n)) else {
        let limit = rest.len().min(MAX_HEADER);
        return Err(error(format!(
            "is {length} bytes long by its own account, at most {limit} are possible: is this a safetensors file, and whole?"
        )));
    };
    let text = std::str::from_utf8(header).map_err(|e| error(e.to_string()))?;
    Ok((text, 8 + header.len()))
}

/// Reads the header's object; `field` is the key being read, left as it stands on an error.
struct HeaderSeed<'a> {
    data_start: usize,
    field: &'a mut String,
}

type Header = (BTreeMap<String, String>, Vec<TensorEntry>);

impl<'de> DeserializeSeed<'de> for HeaderSeed<'_> {
    type Value = Header;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Header, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for HeaderSeed<'_> {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let (mut metadata, mut entries) = (None, Vec::new());
        while let Some(name) = map.next_key::<String>()? {
            *self.field = "tensor name".into();
            check_name(&name).map_err(A::Error::custom)?;
            self.field.clone_from(&name);
            if name == METADATA {
                if metadata.replace(map.next_value::<Metadata>()?.0).is_some() {
                    return Err(A::Error::custom("is there twice"));
                }
            } else {
                let entry = map.next_value::<HeaderEntry>()?.resolve(name, self.data_start);
                entries.push(entry.map_err(A::Error::custom)?);
            }
        }
        *self.field = "header".into();
        Ok((metadata.unwrap_or_default(), entries))
    }
}

/// One tensor, as the header has it.
#[derive(Deserialize)]
struct HeaderEntry<'a> {
    #[serde(borrow)]
    dtype: Cow<'a, str>,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

impl HeaderEntry<'_> {
    fn resolve(self, name: String, data_start: usize) -> Result<TensorEntry, String> {
        let HeaderEntry { dtype, shape: dims, data_offsets: (start, end) } = self;
        let shape = Shape::new(&dims)
            .ok_or_else(|| format!("shape has {} dimensions, at most {MAX_RANK} are possible", dims.len()))?;
        let stored = end.checked_sub(start).ok_or_else(|| format!("data_offsets [{start}, {end}] are out of order"))?;
        let elements = shape.checked_elements().ok_or_else(|| format!("shape {shape} overflows"))?;
        let (dtype, bits) = match DTYPES.iter().find(|(name, ..)| *name == dtype) {
            Some(&(_, Some(dense), bits)) => (StoredType::Dense(dense), Some(bits)),
            Some(&(name, None, bits)) => (StoredType::Other(name.into()), Some(bits)),
            None => (StoredType::Other(dtype.into_owned().into()), None),
        };
        if let Some(bits) = bits {
            let wanted = elements.checked_mul(bits).ok_or_else(|| format!("shape {shape} overflows"))?;
            if stored.checked_mul(8) != Some(wanted) {
                let wanted = wanted.div_ceil(8);
                return Err(format!("data_offsets span {stored} bytes, {dtype} {shape} takes {wanted}"));
            }
        }
        let past_all = || format!("data_offsets [{start}, {end}] overflow");
        let start = start.checked_add(data_start).ok_or_else(past_all)?;
        let end = end.checked_add(data_start).ok_or_else(past_all)?;
        Ok(TensorEntry { name, dtype, shape, span: Range { start, end } })
    }
}

/// The types of the format: name, what it is here, bits an element. `F8_E8M0`, an exponent, is a byte to MLX as well.
const DTYPES: &[(&str, Option<DType>, usize)] = &[
    ("F32", Some(DType::F32), 32),
    ("F16", Some(DType::F16), 16),
    ("BF16", Some(DType::BF16), 16),
    ("U8", Some(DType::U8), 8),
    ("I8", Some(DType::I8), 8),
    ("U16", Some(DType::U16), 16),
    ("U32", Some(DType::U32), 32),
    ("I32", Some(DType::I32), 32),
    ("I64", Some(DType::I64), 64),
    ("BOOL", Some(DType::Bool), 8),
    ("F8_E8M0", Some(DType::U8), 8),
    ("F4", None, 4),
    ("F6_E2M3", None, 6),
    ("F6_E3M2", None, 6),
    ("F8_E4M3", None, 8),
    ("F8_E5M2", None, 8),
    ("F8_E4M3FNUZ", None, 8),
    ("F8_E5M2FNUZ", None, 8),
    ("I16", None, 16),
    ("U64", None, 64),
    ("F64", None, 64),
    ("C64", None, 64),
];

/// A map of strings that refuses a key twice.
struct Metadata(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Metadata, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Metadata;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Metadata, A::Error> {
                let mut pairs = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    if pairs.contains_key(&key) {
                        return Err(A::Error::custom(format_args!("{key:?} is there twice")));
                    }
                    pairs.insert(key, map.next_value()?);
                }
                Ok(Metadata(pairs))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

/// A tensor to [`write()`].
#[derive(Clone, Copy, Debug)]
pub struct TensorData<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its element type.
    pub dtype: DType,
    /// Its dimensions, outermost first.
    pub shape: Shape,
    /// Its elements, row-major, little-endian.
    pub bytes: &'a [u8],
}

/// Writes a safetensors file, whole or not at all: under another name first, then renamed over `path`.
///
/// Tensors are laid out widest type first, so that each is aligned to its elements.
///
/// # Errors
/// [`Error::Argument`] for a name that is there twice or reserved, and for bytes that do not fit the shape; [`Error::Io`].
pub fn write(path: &Path, tensors: &[TensorData<'_>], metadata: &[(&str, &str)]) -> Result<()> {
    let mut tensors: Vec<_> = tensors.iter().collect();
    tensors.sort_by_key(|t| (std::cmp::Reverse(t.dtype.size()), t.name));
    let header = write_header(&tensors, metadata)?;
    let partial = Partial::create(path)?;
    (|| {
        let mut file = &partial.file;
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        for t in &tensors {
            file.write_all(t.bytes)?;
        }
        file.sync_all()?;
        fs::rename(&partial.path, path)
    })()
    .map_err(|e| Error::io(path, e))
}

fn write_header(tensors: &[&TensorData<'_>], metadata: &[(&str, &str)]) -> Result<String> {
    let error = |message| Err(Error::argument("safetensors::write", message));
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert(METADATA.into(), metadata.iter().copied().collect());
    }
    let mut start = 0usize;
    for t in tensors {
        let (dtype, shape, got) = (t.dtype, t.shape, t.bytes.len());
        let wanted = shape.checked_elements().and_then(|n| n.checked_mul(dtype.size()));
        let wanted = wanted.map_or("more bytes than can be".into(), |n| n.to_string());
        if wanted != got.to_string() {
            return error(format!("{:?} has {got} bytes, {dtype} {shape} takes {wanted}", t.name));
        }
        let (dtype, ..) = DTYPES.iter().find(|(_, d, _)| *d == Some(t.dtype)).expect("every DType has a name");
        let end = start + t.bytes.len();
        let entry = serde_json::json!({ "dtype": dtype, "shape": &t.shape[..], "data_offsets": [start, end] });
        if t.name == METADATA || header.insert(t.name.into(), entry).is_some() {
            return error(format!("the name {:?} is taken", t.name));
        }
        start = end;
    }
    let mut text = serde_json::Value::Object(header).to_string();
    while !text.len().is_multiple_of(8) {
        text.push(' ');
    }
    Ok(text)
}

/// A file under a temporary name, removed unless it was renamed.
struct Partial {
    path: PathBuf,
    file: File,
}

impl Partial {
    fn create(target: &Path) -> Result<Partial> {
        let Some(name) = target.file_name() else {
            return Err(Error::io(target, io::ErrorKind::InvalidFilename.into()));
        };
        // Unique among processes and threads, and hidden from whoever lists `*.safetensors`.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let mut hidden = OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}-{}.part", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
        let path = target.with_file_name(hidden);
        let file = File::create(&path).map_err(|e| Error::io(&path, e))?;
        Ok(Partial { path, file })
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // After the rename there is nothing to remove; before it, there is no one left to tell.
        let _ = fs::remove_file(&self.path);
    }
}
