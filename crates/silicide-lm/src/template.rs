//! Chat templates: messages to the text that a model was trained on.
//!
//! Templates are Jinja2, written for the environment that transformers makes: `trim_blocks`, `lstrip_blocks`, `tojson` without
//! HTML escapes, `raise_exception`, `strftime_now`, loop controls, the `generation` tag and the methods of Python's strings
//! and dictionaries. They come with downloaded models, so each rendering has a budget of work, after which it fails.

mod python;

use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, Value};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Map;

use crate::error::{Error, Result};

/// Instructions a rendering may take. Real templates take some hundreds a message.
const FUEL: u64 = 4_000_000;

/// One message of a conversation.
///
/// It reads and writes the usual JSON: `role`, `content` (a text, or a list of parts, or null), and what else a template
/// may look at (`tool_calls`, `tool_call_id`, `name`, `reasoning_content`).
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`, or what else the template knows.
    pub role: String,
    /// A text, a list of parts, or null; absent is not the same as null to some templates.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub content: Option<serde_json::Value>,
    /// All other fields.
    #[serde(flatten)]
    pub fields: Map<String, serde_json::Value>,
}

impl Message {
    /// A message that is a text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Message { role: role.into(), content: Some(serde_json::Value::String(content.into())), fields: Map::new() }
    }

    /// The text of the content: its parts' texts joined where it is a list, empty where there is none.
    pub fn text(&self) -> String {
        match &self.content {
            Some(serde_json::Value::String(text)) => text.clone(),
            Some(serde_json::Value::Array(parts)) => {
                parts.iter().filter_map(|part| part.get("text")?.as_str()).collect::<Vec<_>>().join("\n")
            }
            _ => String::new(),
        }
    }

    /// The message as a template sees it. Reasoning goes under all the names that templates know it by, as transformers does it.
    fn view(&self) -> Result<serde_json::Value> {
        let mut view =
            serde_json::to_value(self).map_err(|e| Error::Template(format!("cannot read a message: {e}")))?;
        let names = ["reasoning_content", "thinking", "reasoning"];
        if let Some(reasoning) = names.iter().filter_map(|name| self.fields.get(*name)).find(|value| !value.is_null()) {
            view["reasoning_content"] = reasoning.clone();
            if !self.fields.contains_key("thinking") {
                view["thinking"] = reasoning.clone();
            }
        }
        Ok(view)
    }
}

/// Keeps an explicit null apart from an absent field.
fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Option<serde_json::Value>, D::Error> {
    serde_json::Value::deserialize(from).map(Some)
}

/// What a template is given beside the messages.
#[derive(Clone, Debug, Default)]
pub struct TemplateOptions {
    /// Whether to end with the beginning of the assistant's answer.
    pub add_generation_prompt: bool,
    /// The tools the model may call, a list of JSON schemas.
    pub tools: Option<serde_json::Value>,
    /// Any other variables, `enable_thinking` for example. They override the tokenizer's.
    pub variables: Map<String, serde_json::Value>,
    /// The time that `strftime_now` tells, in UTC; the present in the local time zone if absent.
    pub now: Option<SystemTime>,
}

/// A compiled chat template.
///
/// ```
/// # use silicide_lm::{ChatTemplate, Message, TemplateOptions};
/// let template = ChatTemplate::new("{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}")?;
/// let text = template.render(&[Message::new("user", "Hi")], &TemplateOptions::default())?;
/// assert_eq!(text, "[user] Hi\n");
/// # Ok::<(), silicide_lm::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    env: Environment<'static>,
    variables: Map<String, serde_json::Value>,
}

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// Where it does not parse, with the line.
    pub fn new(source: &str) -> Result<Self> {
        let mut env = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(explain)?;
        env.set_syntax(syntax);
        env.set_fuel(Some(FUEL));
        python::install(&mut env);
        env.add_template_owned("chat", python::without_generation_tags(source)).map_err(explain)?;
        Ok(ChatTemplate { env, variables: Map::new() })
    }

    /// Adds variables that every rendering sees: `bos_token` and its like.
    #[must_use]
    pub fn with_variables<'a>(mut self, variables: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        self.variables.extend(variables.into_iter().map(|(name, value)| (name.into(), value.into())));
        self
    }

    /// What the template looks at beside what every rendering has (messages and special tokens): `tools` or
    /// `enable_thinking`, say. In alphabetical order.
    pub fn variables(&self) -> Vec<String> {
        let Ok(template) = self.env.get_template("chat") else { return Vec::new() };
        let usual = |name: &String| {
            matches!(name.as_str(), "messages" | "add_generation_prompt" | "strftime_now")
                || name.ends_with("_token")
                || self.env.globals().any(|(global, _)| global == name)
        };
        let mut names: Vec<_> = template.undeclared_variables(false).into_iter().filter(|name| !usual(name)).collect();
        names.sort_unstable();
        names
    }

    /// The text of a conversation.
    ///
    /// # Errors
    /// What the template itself refuses (`raise_exception`: a role it does not know, say), errors in it, and a template that
    /// does not end.
    pub fn render(&self, messages: &[Message], options: &TemplateOptions) -> Result<String> {
        let messages = messages.iter().map(Message::view).collect::<Result<Vec<_>>>()?;
        let mut variables = self.variables.clone();
        variables.insert("messages".into(), messages.into());
        variables.insert("tools".into(), options.tools.clone().unwrap_or_default());
        variables.insert("documents".into(), serde_json::Value::Null);
        variables.insert("add_generation_prompt".into(), options.add_generation_prompt.into());
        variables.extend(options.variables.clone());

        let mut env = self.env.clone();
        python::install_clock(&mut env, options.now);
        let template = env.get_template("chat").map_err(explain)?;
        template.render(Value::from(Serde(variables))).map_err(explain)
    }
}

/// The innermost error, which is the one about the template's own text.
fn explain(error: minijinja::Error) -> Error {
    let line = error.line().map(|line| format!("line {line}: ")).unwrap_or_default();
    let hint = match error.kind() {
        ErrorKind::OutOfFuel => " (the template does more work than any real one; it may not end)",
        _ => "",
    };
    let mut message = error.detail().map_or_else(|| error.kind().to_string(), str::to_string);
    let mut source = std::error::Error::source(&error);
    while let Some(inner) = source {
        message = inner.to_string();
        source = inner.source();
    }
    Error::Template(format!("{line}{message}{hint}"))
}
