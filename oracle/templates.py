"""Renders real chat templates with transformers: the golden texts of crates/silicide-lm's template tests.

    python oracle/templates.py                 # re-renders oracle/vectors/templates (the *.jinja there are the input)
    python oracle/templates.py IN_DIR OUT_DIR  # the same for any folder of *.jinja

Needs transformers 5.23 and jinja2 3.1.6. Templates are kept as their makers publish them; SOURCES.md says where from.
"""

import datetime
import json
import pathlib
import sys

import jinja2
from transformers.utils import chat_template_utils

VECTORS = pathlib.Path(__file__).parent / "vectors" / "templates"
NOW = datetime.datetime(2026, 7, 4, 9, 5, 6)
VARIABLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather in a city — now or \"later\" <b>&'",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Stadt, z. B. Zürich"},
                    "days": {"type": "array", "items": {"type": "integer"}, "description": "Days from now", "default": []},
                    "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "nullable": True},
                    "limit": {"type": ["number", "null"], "minimum": 0.5, "maximum": 40.0},
                },
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "description": "The time.", "parameters": {"type": "object", "properties": {}}}},
]


def call(name, arguments, id):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


ASK = {"role": "user", "content": "Weather in Zürich?"}
SYSTEM = {"role": "system", "content": "Be brief. 你好"}
ARGUMENTS = {"city": "Zürich", "days": [0, 1], "unit": None, "exact": True, "limit": 0.5}
RESULT = {"role": "tool", "tool_call_id": "abcdef123", "name": "get_weather", "content": '{"temp": 21.5}'}
CALLS = {"role": "assistant", "content": "", "tool_calls": [call("get_weather", ARGUMENTS, "abcdef123")]}
TWO_CALLS = {
    "role": "assistant",
    "content": "Let me look.",
    "tool_calls": [call("get_weather", {"city": "Bern"}, "abcdef123"), call("now", {}, "abcdef124")],
}

# name -> (messages, keyword arguments)
CASES = {
    "user": ([{"role": "user", "content": "Hi"}], {"add_generation_prompt": True}),
    "turns": (
        [SYSTEM, {"role": "user", "content": " 1+1?\n"}, {"role": "assistant", "content": " 2 \n"}, {"role": "user", "content": "<b>&'\"</b>"}],
        {"add_generation_prompt": True},
    ),
    "closed": ([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello 👋🏽"}], {}),
    "tools": ([SYSTEM, ASK], {"add_generation_prompt": True, "tools": TOOLS}),
    "call": ([ASK, CALLS, RESULT], {"add_generation_prompt": True, "tools": TOOLS}),
    "calls": (
        [SYSTEM, ASK, TWO_CALLS, RESULT, {**RESULT, "tool_call_id": "abcdef124", "name": "now", "content": "12:00"}, {"role": "assistant", "content": "21."}],
        {"tools": TOOLS},
    ),
    "text_arguments": (
        [ASK, {**CALLS, "tool_calls": [call("get_weather", json.dumps(ARGUMENTS), "abcdef123")]}, RESULT],
        {"add_generation_prompt": True, "tools": TOOLS},
    ),
    "null_content": ([ASK, {**CALLS, "content": None}, RESULT, {"role": "assistant", "content": "21.5 °C"}], {"tools": TOOLS}),
    "thinking": (
        [ASK, {"role": "assistant", "reasoning_content": "Hm.\n", "content": "<think>\nWell…\n</think>\n\nSunny."}, {"role": "user", "content": "Sure?"}],
        {"add_generation_prompt": True, "enable_thinking": True},
    ),
    "no_thinking": ([ASK], {"add_generation_prompt": True, "enable_thinking": False, "thinking": False}),
    "reasoning": ([SYSTEM, ASK, {"role": "assistant", "reasoning": "A. B.", "content": "Sunny."}], {"reasoning_effort": "low"}),
    "parts": (
        [{"role": "user", "content": [{"type": "text", "text": "One "}, {"type": "text", "text": "two"}]}, {"role": "assistant", "content": [{"type": "text", "text": "Three"}]}],
        {"add_generation_prompt": True},
    ),
    "role": ([{"role": "user", "content": "Hi"}, {"role": "narrator", "content": "Enter a bear."}], {}),
    "order": ([{"role": "assistant", "content": "Hi"}, {"role": "assistant", "content": "Hi?"}], {"add_generation_prompt": True}),
}


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


def render(source, messages, kwargs):
    try:
        [text], _ = chat_template_utils.render_jinja_template([messages], chat_template=source, **{**VARIABLES, **kwargs})
        return text
    except Exception as error:
        # `raise_exception`. Subclasses are defects of the template, as are Python's own errors, and say nothing of the text.
        return {"error": str(error)} if type(error) is jinja2.exceptions.TemplateError else None


def main():
    source, target = (pathlib.Path(p) for p in sys.argv[1:3]) if len(sys.argv) > 2 else (VECTORS, VECTORS)
    chat_template_utils.datetime = Clock
    cases = {name: {"messages": messages, **kwargs} for name, (messages, kwargs) in CASES.items()}
    rendered = {}
    for path in sorted(source.glob("*.jinja")):
        text = path.read_text(encoding="utf-8")
        texts = {name: render(text, messages, kwargs) for name, (messages, kwargs) in CASES.items()}
        rendered[path.stem] = {name: text for name, text in texts.items() if text is not None}
    target.mkdir(parents=True, exist_ok=True)
    out = {"now": NOW.replace(tzinfo=datetime.timezone.utc).timestamp(), "variables": VARIABLES, "cases": cases, "rendered": rendered}
    (target / "rendered.json").write_text(json.dumps(out, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    print(f"{len(rendered)} templates, {len(CASES)} conversations")


main()
