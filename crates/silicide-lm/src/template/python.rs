//! What templates expect of Python and of transformers' Jinja environment.

use std::fmt::Write;
use std::time::SystemTime;

use minijinja::value::{Kwargs, Rest, Tuple, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

pub(super) fn install(env: &mut Environment<'static>) {
    env.set_unknown_method_callback(method);
    env.add_filter("tojson", to_json);
    env.add_test("iterable", is_iterable);
    env.add_test("sequence", is_sequence);
    env.set_formatter(|out, state, value| match value.kind() {
        ValueKind::None => Ok(out.write_str("None")?),
        ValueKind::Number if !value.is_integer() => Ok(out.write_str(&float(f64::try_from(value.clone())?))?),
        _ => minijinja::escape_formatter(out, state, value),
    });
    env.add_function("raise_exception", |message: Value| -> Result<Value, Error> { Err(refuse(message.to_string())) });
}

/// `strftime_now`, which differs from rendering to rendering.
pub(super) fn install_clock(env: &mut Environment<'static>, now: Option<SystemTime>) {
    env.add_function("strftime_now", move |format: &str| -> Result<String, Error> {
        let now = match now {
            Some(time) => jiff::Timestamp::try_from(time).map(|time| time.to_zoned(jiff::tz::TimeZone::UTC)),
            None => Ok(jiff::Zoned::now()),
        };
        let text = now.and_then(|now| jiff::fmt::strtime::format(format, &now));
        text.map_err(|e| refuse(format!("strftime_now({format:?}): {e}")))
    });
}

/// Replaces `{% generation %}` and its end, which mark the assistant's words for training, by a scope that does nothing else.
pub(super) fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        out.push_str(before);
        let end = tag.find("%}").unwrap_or(tag.len());
        let name = tag[..end].trim_matches(['-', '+']).trim();
        match name {
            "generation" => out.push_str(&tag[..end].replace("generation", "with")),
            "endgeneration" => out.push_str(&tag[..end].replace("endgeneration", "endwith")),
            _ => out.push_str(&tag[..end]),
        }
        rest = &tag[end..];
    }
    out.push_str(rest);
    out
}

/// Methods of Python's values that minijinja's own list lacks.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let Some(text) = value.as_str() else { return pycompat::unknown_method_callback(state, value, name, args) };
    let triple = |(a, b, c): (&str, &str, &str)| Tuple::from([a, b, c].map(Value::from)).into();
    Ok(match name {
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            text.strip_prefix(prefix).unwrap_or(text).into()
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            text.strip_suffix(suffix).unwrap_or(text).into()
        }
        "partition" => {
            let (separator,): (&str,) = from_args(args)?;
            triple(text.split_once(separator).map_or((text, "", ""), |(a, b)| (a, separator, b)))
        }
        "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            triple(text.rsplit_once(separator).map_or(("", "", text), |(a, b)| (a, separator, b)))
        }
        "rsplit" => {
            let (separator, most): (&str, Option<usize>) = from_args(args)?;
            let most = most.map_or(usize::MAX, |most| most.saturating_add(1));
            let mut parts: Vec<Value> = text.rsplitn(most, separator).map(Value::from).collect();
            parts.reverse();
            parts.into()
        }
        _ => return pycompat::unknown_method_callback(state, value, name, args),
    })
}

/// As Jinja2 has it: what is not defined is empty, but none is no iterable.
fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// As Jinja2 has it: whatever has a length and can be indexed, so texts and mappings too.
fn is_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map | ValueKind::Undefined)
}

/// `json.dumps`, with transformers' defaults.
fn to_json(value: &Value, args: Rest<Value>, options: Kwargs) -> Result<Value, Error> {
    if !args.is_empty() {
        return Err(refuse("tojson: options must be named".into()));
    }
    let indent: Option<Value> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let indent = match indent.filter(|indent| !indent.is_none()) {
        None => None,
        Some(indent) => match (indent.as_usize(), indent.as_str()) {
            (Some(width), _) if width <= 64 => Some(" ".repeat(width)),
            (_, Some(text)) => Some(text.to_string()),
            _ => return Err(refuse(format!("tojson: indent is {indent}; want a number of spaces, at most 64"))),
        },
    };
    let (item, key) = match separators.as_deref() {
        None => (if indent.is_some() { "," } else { ", " }, ": "),
        Some([item, key]) => (item.as_str(), key.as_str()),
        Some(_) => return Err(refuse("tojson: want two separators".into())),
    };
    let ensure_ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let mut writer = JsonWriter { out: String::new(), item, key, indent: indent.as_deref(), ensure_ascii, sort_keys };
    writer.value(value, 0)?;
    Ok(Value::from(writer.out))
}

struct JsonWriter<'a> {
    out: String,
    item: &'a str,
    key: &'a str,
    indent: Option<&'a str>,
    ensure_ascii: bool,
    sort_keys: bool,
}

impl JsonWriter<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > 128 {
            return Err(refuse("tojson: nested too deeply".into()));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if value.is_integer() => self.out.push_str(&value.to_string()),
            ValueKind::Number => self.out.push_str(&float(f64::try_from(value.clone())?)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                self.out.push('[');
                let mut empty = true;
                for item in value.try_iter()? {
                    self.begin_item(&mut empty, depth + 1);
                    self.value(&item, depth + 1)?;
                }
                self.end(empty, depth, ']');
            }
            ValueKind::Map => {
                self.out.push('{');
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                let mut empty = true;
                for key in keys {
                    self.begin_item(&mut empty, depth + 1);
                    match key.kind() {
                        ValueKind::None => self.out.push_str("\"null\""),
                        ValueKind::Bool => self.out.push_str(if key.is_true() { "\"true\"" } else { "\"false\"" }),
                        _ => self.string(&key.to_string()),
                    }
                    self.out.push_str(self.key);
                    self.value(&value.get_item(&key)?, depth + 1)?;
                }
                self.end(empty, depth, '}');
            }
            kind => return Err(refuse(format!("tojson: a value that is {kind} is not JSON"))),
        }
        Ok(())
    }

    fn begin_item(&mut self, first: &mut bool, depth: usize) {
        if !std::mem::take(first) {
            self.out.push_str(self.item);
        }
        self.new_line(depth);
    }

    fn end(&mut self, empty: bool, depth: usize, close: char) {
        if !empty {
            self.new_line(depth);
        }
        self.out.push(close);
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(indent, depth));
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{C}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && c > '~') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        // Writing to a string cannot fail.
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

/// A float as Python's `repr` has it: the shortest digits that read back, with an exponent from 1e16 and below 1e-4.
fn float(x: f64) -> String {
    if x.is_nan() {
        return "NaN".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "Infinity" } else { "-Infinity" }.into();
    }
    if x == 0.0 || (1e-4..1e16).contains(&x.abs()) {
        return format!("{x:?}");
    }
    let text = format!("{x:e}");
    match text.split_once('e') {
        Some((digits, exponent)) => {
            let exponent: i32 = exponent.parse().unwrap_or_default();
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
        None => text,
    }
}

fn refuse(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}
