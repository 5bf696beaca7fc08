//! GGUF metadata: walked once when the file is opened, decoded where it lies when it is asked for.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::super::table::check_name;
use crate::formats::Mapped;
use crate::{Error, Result};

/// The metadata of a GGUF file.
///
/// Values stay in the file: a vocabulary of a quarter of a million strings costs nothing until it is asked for.
///
/// ```no_run
/// # use silicide::formats::gguf::GgufFile;
/// let metadata = GgufFile::open("model.gguf".as_ref())?.metadata;
/// let arch: &str = metadata.get("general.architecture")?;
/// let layers: u32 = metadata.get(&format!("{arch}.block_count"))?;
/// let tokens: Vec<&str> = metadata.get("tokenizer.ggml.tokens")?;
/// let scores: Option<Vec<f32>> = metadata.find("tokenizer.ggml.scores")?;
/// # Ok::<(), silicide::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Metadata {
    path: Arc<Path>,
    bytes: Mapped,
    entries: BTreeMap<String, (Kind, Range<usize>)>,
}

impl Metadata {
    /// The value of a key that must be there, as a number that it fits, a `&str`, a `bool`, or a `Vec` of such.
    ///
    /// # Errors
    /// [`Error::Format`] naming the file and the key where it is missing, of another kind, or does not fit.
    pub fn get<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<T> {
        self.find(key)?.ok_or_else(|| self.error(key, "is missing from the metadata"))
    }

    /// As [`get`](Self::get), of a key that may be missing.
    pub fn find<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<Option<T>> {
        let value = self.value(key);
        value.map(T::from_value).transpose().map_err(|message| self.error(key, message))
    }

    /// The value of a key, of whatever kind.
    pub fn value(&self, key: &str) -> Option<Value<'_>> {
        self.entries.get(key).and_then(|entry| self.decode(entry))
    }

    /// All keys and values, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Value<'_>)> {
        self.entries.iter().filter_map(|(key, entry)| Some((key.as_str(), self.decode(entry)?)))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An error that names the file and this key.
    pub fn error(&self, key: &str, message: impl Into<String>) -> Error {
        Error::format(&*self.path, key, message)
    }

    /// Walks the metadata at the cursor, a count and as many pairs, and leaves the cursor behind it.
    pub(super) fn read(cursor: &mut Cursor<'_>, bytes: Mapped) -> Result<Metadata> {
        let count = cursor.u64(format_args!("metadata count"))?;
        let mut entries = BTreeMap::new();
        for i in 0..count {
            let key = cursor.string(format_args!("metadata key {i}"))?;
            check_name(key).map_err(|message| cursor.error("metadata key", message))?;
            let kind = Kind::read(cursor, format_args!("{key}"))?;
            let start = cursor.position();
            cursor.skip(kind, 0, format_args!("{key}"))?;
            if entries.insert(key.to_owned(), (kind, start..cursor.position())).is_some() {
                return Err(cursor.error(key, "is there twice in the metadata"));
            }
        }
        Ok(Metadata { path: cursor.path.into(), bytes, entries })
    }

    fn decode(&self, (kind, span): &(Kind, Range<usize>)) -> Option<Value<'_>> {
        Cursor::new(&self.path, self.bytes.get(span.clone())?).value(*kind)
    }
}

/// A metadata value; strings and arrays borrow from the file.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub enum Value<'a> {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    /// UTF-8 by the format's rule, which some writers break in vocabularies.
    String(&'a [u8]),
    Array(Array<'a>),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl Value<'_> {
    fn integer(self) -> Option<i128> {
        match self {
            Value::U8(v) => Some(v.into()),
            Value::I8(v) => Some(v.into()),
            Value::U16(v) => Some(v.into()),
            Value::I16(v) => Some(v.into()),
            Value::U32(v) => Some(v.into()),
            Value::I32(v) => Some(v.into()),
            Value::U64(v) => Some(v.into()),
            Value::I64(v) => Some(v.into()),
            _ => None,
        }
    }
}

/// Numbers as they are, strings quoted and cut short, arrays by kind and length.
impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::F32(v) => v.fmt(f),
            Value::F64(v) => v.fmt(f),
            Value::Bool(v) => v.fmt(f),
            Value::String(bytes) => {
                let text = String::from_utf8_lossy(&bytes[..bytes.len().min(256)]);
                let short: String = text.chars().take(60).collect();
                write!(f, "{short:?}{}", if short.len() < bytes.len() { "..." } else { "" })
            }
            Value::Array(array) => write!(f, "an array of {} {}", array.len, array.kind.name()),
            integer => integer.integer().unwrap_or_default().fmt(f),
        }
    }
}

/// A metadata array, decoded as it is iterated.
#[derive(Clone, Copy, Debug)]
pub struct Array<'a> {
    kind: Kind,
    len: usize,
    bytes: &'a [u8],
}

impl<'a> Array<'a> {
    /// The kind of every element.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements.
    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let (kind, mut cursor) = (self.kind, Cursor::new(Path::new(""), self.bytes));
        (0..self.len).map_while(move |_| cursor.value(kind))
    }
}

macro_rules! kinds {
    ($($id:literal $name:ident $text:literal $size:expr,)*) => {
        /// The kinds of metadata values.
        #[allow(missing_docs)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Kind { $($name,)* }

        impl Kind {
            fn from_id(id: u32) -> Option<Kind> {
                match id { $($id => Some(Kind::$name),)* _ => None }
            }

            /// Its name in the plural: `u32`, `strings`, `arrays` ...
            pub fn name(self) -> &'static str {
                match self { $(Kind::$name => $text,)* }
            }

            /// Bytes a value takes, where all take the same.
            fn size(self) -> Option<usize> {
                match self { $(Kind::$name => $size,)* }
            }
        }
    };
}
kinds! {
    0 U8 "u8" Some(1),
    1 I8 "i8" Some(1),
    2 U16 "u16" Some(2),
    3 I16 "i16" Some(2),
    4 U32 "u32" Some(4),
    5 I32 "i32" Some(4),
    6 F32 "f32" Some(4),
    7 Bool "bools" Some(1),
    8 String "strings" None,
    9 Array "arrays" None,
    10 U64 "u64" Some(8),
    11 I64 "i64" Some(8),
    12 F64 "f64" Some(8),
}

impl Kind {
    fn read(cursor: &mut Cursor<'_>, field: fmt::Arguments<'_>) -> Result<Kind> {
        let id = cursor.u32(field)?;
        Kind::from_id(id).ok_or_else(|| cursor.error(field.to_string(), format!("has kind {id}, wanted 0 to 12")))
    }
}

/// Arrays of arrays go no deeper. Real files have none.
const MAX_DEPTH: usize = 8;

/// Reads numbers and strings off a file's start; every error names the field that ran out.
pub(super) struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(path: &'a Path, bytes: &'a [u8]) -> Cursor<'a> {
        Cursor { path, bytes, position: 0 }
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    pub(super) fn error(&self, field: impl Into<String>, message: impl Into<String>) -> Error {
        Error::format(self.path, field, message)
    }

    pub(super) fn take(&mut self, count: u64, field: fmt::Arguments<'_>) -> Result<&'a [u8]> {
        self.try_take(count).ok_or_else(|| {
            let left = self.bytes.len() - self.position;
            self.error(field.to_string(), format!("takes {count} bytes and the file ends after {left}"))
        })
    }

    pub(super) fn u32(&mut self, field: fmt::Arguments<'_>) -> Result<u32> {
        Ok(u32::from_le_bytes(self.take(4, field)?.try_into().expect("4 bytes were taken")))
    }

    pub(super) fn u64(&mut self, field: fmt::Arguments<'_>) -> Result<u64> {
        Ok(u64::from_le_bytes(self.take(8, field)?.try_into().expect("8 bytes were taken")))
    }

    pub(super) fn string(&mut self, field: fmt::Arguments<'_>) -> Result<&'a str> {
        let length = self.u64(field)?;
        std::str::from_utf8(self.take(length, field)?).map_err(|e| self.error(field.to_string(), e.to_string()))
    }

    /// Steps over a value, checking all that decoding relies on.
    fn skip(&mut self, kind: Kind, depth: usize, field: fmt::Arguments<'_>) -> Result<()> {
        if kind != Kind::Array {
            return self.skip_many(kind, 1, depth, field);
        }
        if depth == MAX_DEPTH {
            return Err(self.error(field.to_string(), format!("arrays are nested more than {MAX_DEPTH} deep")));
        }
        let kind = Kind::read(self, field)?;
        let count = self.u64(field)?;
        self.skip_many(kind, count, depth + 1, field)
    }

    fn skip_many(&mut self, kind: Kind, count: u64, depth: usize, field: fmt::Arguments<'_>) -> Result<()> {
        if let Some(size) = kind.size() {
            let Some(length) = count.checked_mul(size as u64) else {
                return Err(self.error(field.to_string(), format!("{count} {} overflow", kind.name())));
            };
            let values = self.take(length, field)?;
            if kind == Kind::Bool && values.iter().any(|&b| b > 1) {
                return Err(self.error(field.to_string(), "a bool is neither 0 nor 1"));
            }
            return Ok(());
        }
        for _ in 0..count {
            match kind {
                Kind::Array => self.skip(kind, depth, field)?,
                _ => {
                    let length = self.u64(field)?;
                    self.take(length, field)?;
                }
            }
        }
        Ok(())
    }

    /// Decodes a value that [`skip`](Self::skip) went over before, so there is none only if the file has changed.
    fn value(&mut self, kind: Kind) -> Option<Value<'a>> {
        fn bytes<const N: usize>(cursor: &mut Cursor<'_>) -> Option<[u8; N]> {
            cursor.try_take(N as u64)?.try_into().ok()
        }
        Some(match kind {
            Kind::U8 => Value::U8(u8::from_le_bytes(bytes(self)?)),
            Kind::I8 => Value::I8(i8::from_le_bytes(bytes(self)?)),
            Kind::U16 => Value::U16(u16::from_le_bytes(bytes(self)?)),
            Kind::I16 => Value::I16(i16::from_le_bytes(bytes(self)?)),
            Kind::U32 => Value::U32(u32::from_le_bytes(bytes(self)?)),
            Kind::I32 => Value::I32(i32::from_le_bytes(bytes(self)?)),
            Kind::F32 => Value::F32(f32::from_le_bytes(bytes(self)?)),
            Kind::Bool => Value::Bool(bytes::<1>(self)? == [1]),
            Kind::U64 => Value::U64(u64::from_le_bytes(bytes(self)?)),
            Kind::I64 => Value::I64(i64::from_le_bytes(bytes(self)?)),
            Kind::F64 => Value::F64(f64::from_le_bytes(bytes(self)?)),
            Kind::String => {
                let length = u64::from_le_bytes(bytes(self)?);
                Value::String(self.try_take(length)?)
            }
            Kind::Array => {
                let kind = Kind::from_id(u32::from_le_bytes(bytes(self)?))?;
                let count = u64::from_le_bytes(bytes(self)?);
                let start = self.position;
                self.skip_many(kind, count, 0, format_args!("array")).ok()?;
                Value::Array(Array { kind, len: count.try_into().ok()?, bytes: &self.bytes[start..self.position] })
            }
        })
    }

    fn try_take(&mut self, count: u64) -> Option<&'a [u8]> {
        let end = self.position.checked_add(usize::try_from(count).ok()?)?;
        let taken = self.bytes.get(self.position..end)?;
        self.position = end;
        Some(taken)
    }
}

/// A Rust type that [`Metadata::get`] can return.
pub trait FromValue<'a>: Sized {
    /// Converts, or says what was got and what was wanted.
    fn from_value(value: Value<'a>) -> Result<Self, String>;
}

/// Any value, as it is.
impl<'a> FromValue<'a> for Value<'a> {
    fn from_value(value: Value<'a>) -> Result<Self, String> {
        Ok(value)
    }
}

macro_rules! integers {
    ($($ty:ty),*) => {
        $(
            /// From any integer kind, if the number fits.
            impl FromValue<'_> for $ty {
                fn from_value(value: Value<'_>) -> Result<$ty, String> {
                    let wanted = || format!("is {value}, wanted an integer that fits {}", stringify!($ty));
                    value.integer().and_then(|v| v.try_into().ok()).ok_or_else(wanted)
                }
            }
        )*
    };
}
integers!(u8, i8, u16, i16, u32, i32, u64, i64, usize);

/// From either floating-point kind.
impl FromValue<'_> for f64 {
    fn from_value(value: Value<'_>) -> Result<f64, String> {
        match value {
            Value::F32(v) => Ok(v.into()),
            Value::F64(v) => Ok(v),
            _ => Err(format!("is {value}, wanted a floating-point number")),
        }
    }
}

/// From either floating-point kind, rounded.
impl FromValue<'_> for f32 {
    fn from_value(value: Value<'_>) -> Result<f32, String> {
        f64::from_value(value).map(|v| v as f32)
    }
}

impl FromValue<'_> for bool {
    fn from_value(value: Value<'_>) -> Result<bool, String> {
        match value {
            Value::Bool(v) => Ok(v),
            _ => Err(format!("is {value}, wanted a bool")),
        }
    }
}

/// The bytes of a string, UTF-8 or not.
impl<'a> FromValue<'a> for &'a [u8] {
    fn from_value(value: Value<'a>) -> Result<&'a [u8], String> {
        match value {
            Value::String(bytes) => Ok(bytes),
            _ => Err(format!("is {value}, wanted a string")),
        }
    }
}

impl<'a> FromValue<'a> for &'a str {
    fn from_value(value: Value<'a>) -> Result<&'a str, String> {
        let bytes = <&[u8]>::from_value(value)?;
        std::str::from_utf8(bytes).map_err(|e| format!("is {value}: {e}"))
    }
}

impl<'a> FromValue<'a> for Array<'a> {
    fn from_value(value: Value<'a>) -> Result<Array<'a>, String> {
        match value {
            Value::Array(array) => Ok(array),
            _ => Err(format!("is {value}, wanted an array")),
        }
    }
}

impl<'a, T: FromValue<'a>> FromValue<'a> for Vec<T> {
    fn from_value(value: Value<'a>) -> Result<Vec<T>, String> {
        let values = Array::from_value(value)?.iter().enumerate();
        values.map(|(i, v)| T::from_value(v).map_err(|message| format!("element {i} {message}"))).collect()
    }
}
