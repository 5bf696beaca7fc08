//! JSON as checkpoints carry it (`config.json` and its companions), read with care.
//!
//! Two things differ from a plain reading. A key that is there twice is an error, where most readers take the last one
//! without a word. The bare `NaN`, `Infinity` and `-Infinity` that Python writes become `{"__float__": "NaN"}` and so
//! on, which is how transformers spells them in JSON proper. Nesting is limited to 128 levels.

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt;
use std::path::Path;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::Mapped;
use crate::{Error, Result};

/// The largest file that [`read`] takes, in bytes. Real ones are a hundredth of it.
pub const MAX_BYTES: usize = 4 << 20;

/// Reads a JSON file.
///
/// # Errors
/// [`Error::Io`], and [`Error::Format`] naming the key for anything that is not JSON, a key that is there twice, nesting
/// too deep, and a file larger than [`MAX_BYTES`].
pub fn read(path: &Path) -> Result<Value> {
    parse(path, &Mapped::open(path)?)
}

/// As [`read`], of bytes in memory; `path` is for messages.
pub fn parse(path: &Path, bytes: &[u8]) -> Result<Value> {
    if bytes.len() > MAX_BYTES {
        let message = format!("is {} bytes long, more than the {MAX_BYTES} that are read", bytes.len());
        return Err(Error::format(path, "file", message));
    }
    let text = std::str::from_utf8(bytes).map_err(|e| Error::format(path, "file", e.to_string()))?;
    let text = tag_non_finite(text);
    let keys = RefCell::default();
    let mut json = serde_json::Deserializer::from_str(&text);
    let value = Strict { keys: &keys }.deserialize(&mut json).and_then(|value| json.end().map(|()| value));
    value.map_err(|e| {
        let field = match keys.into_inner().join(".") {
            none if none.is_empty() => "file".into(),
            field if field.contains(char::is_control) => format!("{field:?}"),
            field => field,
        };
        Error::format(path, field, e.to_string())
    })
}

/// Builds a [`Value`]; `keys` is the way to the value being read, left as it stands on an error.
#[derive(Clone, Copy)]
struct Strict<'a> {
    keys: &'a RefCell<Vec<String>>,
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(self)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            self.keys.borrow_mut().push(key.clone());
            if object.contains_key(&key) {
                return Err(A::Error::custom("is there twice"));
            }
            object.insert(key, map.next_value_seed(self)?);
            self.keys.borrow_mut().pop();
        }
        Ok(Value::Object(object))
    }
}

/// Replaces the numbers that Python writes and JSON does not have.
fn tag_non_finite(text: &str) -> Cow<'_, str> {
    const WORDS: [&str; 3] = ["NaN", "Infinity", "-Infinity"];
    if !WORDS.iter().any(|w| text.contains(w)) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let (mut quoted, mut escaped) = (false, false);
    while let Some(c) = rest.chars().next() {
        if !quoted && let Some(word) = WORDS.iter().find(|w| rest.starts_with(**w)) {
            out += &format!(r#"{{"__float__": "{word}"}}"#);
            rest = &rest[word.len()..];
            continue;
        }
        quoted ^= c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        out.push(c);
        rest = &rest[c.len_utf8()..];
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Value> {
        super::parse(Path::new("config.json"), text.as_bytes())
    }

    #[test]
    fn errors_name_the_key() {
        let message = |text| parse(text).unwrap_err().to_string();
        assert!(message(r#"{"a": {"b": 1, "b": 2}}"#).starts_with("config.json: a.b: is there twice"));
        assert!(message(r#"{"a": {"b": tru}}"#).starts_with("config.json: a.b: expected ident"));
        assert!(message("{} {}").starts_with("config.json: file: trailing characters"));
        assert!(message(&"[".repeat(100_000)).contains("recursion limit"));
    }

    #[test]
    fn python_numbers_are_tagged() {
        let value =
            parse(r#"{"limits": [0.0, Infinity, -Infinity], "x": NaN, "NaN \" Infinity": "-Infinity"}"#).unwrap();
        let tag = |s| serde_json::json!({ "__float__": s });
        assert_eq!(value["limits"], serde_json::json!([0.0, tag("Infinity"), tag("-Infinity")]));
        assert_eq!(value["x"], tag("NaN"));
        assert_eq!(value["NaN \" Infinity"], "-Infinity");
    }
}
