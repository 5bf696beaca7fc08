"""Encodes awkward texts with real tokenizers: the golden ids of crates/silicide-lm's tokenizer tests.

    python oracle/encode.py FOLDER...     # folders with a tokenizer.json, or GGUF files

Each goes to oracle/.large/tokenizers/NAME: its tokenizer files, and expected.json with the ids that the `tokenizers` library
(and for the special tokens around a text, transformers) gives. For a GGUF file it is the vocabulary as vocab.json, and the ids
that llama.cpp gives, if LIBLLAMA names libllama.so. Nothing of this is committed; the small tokenizers in
oracle/vectors/tokenizers are (see small_tokenizers.py).
"""

import ctypes
import json
import os
import pathlib
import random
import shutil
import sys

OUT = pathlib.Path(__file__).parent / ".large" / "tokenizers"

TEXTS = [
    "",
    " ",
    "a",
    "Hello, world!",
    "  leading and trailing  ",
    "tabs\tand\nnewlines\r\n\r\n  mixed \n\n\n\n end",
    " " * 40 + "x" + "\n" * 20 + "\t" * 10,
    "I'm you're he'll they'd we've it's DON'T I'LL can’t",
    "0 12 345 6789 1234567890 3.14159 1,000,000 0x1F ٣٤٥ ४५६ ½ Ⅷ 10²",
    "def f(x):\n    return x**2  # comment\n\nif __name__ == '__main__':\n\tprint(f\"{f(3)!r}\")\n",
    "<div class=\"a\">&amp;</div> {{ x }} [[1,2],[3]] a->b a=>b !== ??? ...... ----- ===== /* */ //",
    "Grüße aus Zürich – “naïve” café ÀÉÎÕÜ ß ſ ﬁ",
    "e\u0301 vs é, A\u030a vs Å, \u1112\u1161\u11ab vs 한",
    "Привет, мир! Съешь ещё этих мягких французских булок",
    "Καλημέρα κόσμε",
    "שלום עולם مرحبا بالعالم می‌خواهم",
    "नमस्ते दुनिया தமிழ் ไทยภาษา ខ្មែរ မြန်မာ",
    "你好，世界！今天天气怎么样？日本語のテスト。カタカナ 한국어 문장입니다",
    "🙂🙃 👋🏽 👨‍👩‍👧‍👦 🇨🇭 ☃️ \U0001F9FF 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𓀀",
    "\u200b\u200d\ufeff\u00a0\u2003\u3000x\u00ad\u2028\u2029",
    "\x00\x01\x1b[0m\x7f\ufffd\ue000\U0010ffff",
    "<s> </s> <|endoftext|> <|im_start|>user\nhi<|im_end|> <bos><eos> <|eot_id|> [INST] <think> </think> <0x41> ▁x Ġy",
    "a<|im_end|>b <end_of_turn>\n<start_of_turn>model",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "SupercalifragilisticexpialidociousANDthenSomeCamelCaseAndSNAKE_CASE_andkebab-case",
    "https://example.org/path?q=1&r=%20#frag user@example.com",
]


def random_ids(tokenizer, count):
    """Ids at random, and their text by the library: special tokens, halves of characters and all."""
    rng = random.Random(11)
    size = max(tokenizer.get_vocab().values()) + 1
    falls_back = tokenizer.token_to_id("<0x00>") is not None
    for _ in range(count):
        ids = [rng.randrange(size) for _ in range(rng.randint(1, 12))]
        decoded = tokenizer.decode(ids, skip_special_tokens=False)
        # Of ill-formed byte tokens the library makes one U+FFFD each; Python, mlx-lm and we one for each ill-formed part.
        if not (falls_back and "\ufffd" in decoded):
            yield {"ids": ids, "decoded": decoded, "skipped": tokenizer.decode(ids, skip_special_tokens=True)}


def random_texts(count):
    rng = random.Random(7)
    pools = [
        "abcdefghijklmnopqrstuvwxyz      ",
        "ABCdef 0123456789 .,;:!?'\"-_()[]{}<>/\\|@#$%^&*+=~`\n\t",
        "äöüßéèñ çøå čšž ğıș",
        "абвгд ежзик лмноп",
        "的一是在不了有和人这中大为上个国我以要他",
        "あいうえおカキクケコ漢字",
        "अआइईउ कखगघङ ािीुू",
        "🙂👍🏽🎉❤️‍🔥🇫🇷",
    ]
    for _ in range(count):
        text = ""
        for _ in range(rng.randint(1, 6)):
            pool = rng.choice(pools)
            text += "".join(rng.choice(pool) for _ in range(rng.randint(1, 12)))
        yield text


def from_folder(folder, target, count=300):
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    for name in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "generation_config.json"]:
        if (folder / name).exists() and folder != target:
            shutil.copy(folder / name, target)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    # The generic class: a named one may rebuild the pipeline and lose steps of tokenizer.json.
    wrapped = PreTrainedTokenizerFast.from_pretrained(str(folder))
    cases = []
    for text in TEXTS + list(random_texts(count)):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        cases.append(
            {
                "text": text,
                "ids": ids,
                "with_special": wrapped(text, add_special_tokens=True)["input_ids"],
                "decoded": tokenizer.decode(ids, skip_special_tokens=False),
                "skipped": tokenizer.decode(ids, skip_special_tokens=True),
            }
        )
    return {
        "bos": wrapped.bos_token_id,
        "eos": wrapped.eos_token_id,
        "vocab_size": max(tokenizer.get_vocab().values()) + 1,
        "cases": cases,
        "id_cases": list(random_ids(tokenizer, count)),
    }


class Llama:
    """llama.cpp's tokenizer, of a library built elsewhere."""

    def __init__(self, library, path):
        self.lib = lib = ctypes.CDLL(library)
        lib.llama_model_default_params.restype = self.params_type(lib)
        params = lib.llama_model_default_params()
        params.vocab_only = True
        lib.llama_model_load_from_file.restype = ctypes.c_void_p
        lib.llama_model_load_from_file.argtypes = [ctypes.c_char_p, type(params)]
        model = lib.llama_model_load_from_file(str(path).encode(), params)
        assert model, "llama.cpp cannot read the file"
        lib.llama_model_get_vocab.restype = ctypes.c_void_p
        lib.llama_model_get_vocab.argtypes = [ctypes.c_void_p]
        self.vocab = lib.llama_model_get_vocab(model)
        lib.llama_tokenize.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.POINTER(ctypes.c_int32), ctypes.c_int32, ctypes.c_bool, ctypes.c_bool]

    @staticmethod
    def params_type(lib):
        # struct llama_model_params of ggml 0.28.0; only vocab_only is set, the rest keeps its defaults.
        pointers = ["devices", "tensor_buft_overrides"]
        fields = [(name, ctypes.c_void_p) for name in pointers]
        fields += [(name, ctypes.c_int32) for name in ["n_gpu_layers", "split_mode", "load_mode", "lazy_mode", "main_gpu"]]
        fields += [(name, ctypes.c_void_p) for name in ["tensor_split", "progress_callback", "progress_callback_user_data", "kv_overrides"]]
        fields += [("vocab_only", ctypes.c_bool)] + [(f"flag{i}", ctypes.c_bool) for i in range(5)]
        return type("Params", (ctypes.Structure,), {"_fields_": fields})

    def encode(self, text, special):
        data = text.encode()
        ids = (ctypes.c_int32 * (len(data) + 8))()
        count = self.lib.llama_tokenize(self.vocab, data, len(data), ids, len(ids), special, True)
        assert count >= 0
        return list(ids[:count])


def from_gguf(path, target):
    from gguf import GGUFReader

    fields = GGUFReader(path).fields

    def value(key):
        return fields[key].contents() if key in fields else None

    ggml = "tokenizer.ggml."
    vocab = {
        "model": value(ggml + "model"),
        "pre": value(ggml + "pre"),
        "tokens": value(ggml + "tokens"),
        "scores": value(ggml + "scores") or [],
        "token_types": value(ggml + "token_type") or [],
        "merges": value(ggml + "merges") or [],
        "bos_id": value(ggml + "bos_token_id"),
        "eos_id": value(ggml + "eos_token_id"),
        "unk_id": value(ggml + "unknown_token_id"),
        "add_bos": value(ggml + "add_bos_token"),
        "add_space_prefix": value(ggml + "add_space_prefix"),
        "chat_template": value("tokenizer.chat_template"),
    }
    (target / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    llama = Llama(os.environ["LIBLLAMA"], path)
    cases = []
    for text in TEXTS + list(random_texts(300)):
        # llama.cpp takes a NUL for the end, and does not join a written "▁" with a space, which the model's own tokenizer does.
        if "\x00" not in text and " ▁" not in text:
            cases.append({"text": text, "ids": llama.encode(text, False), "with_special": llama.encode(text, True)})
    return {"cases": cases}


def main():
    for path in map(pathlib.Path, sys.argv[1:]):
        name = path.parent.parent.name if path.name == "models" else path.stem + "-gguf" * (path.suffix == ".gguf")
        target = OUT / name
        target.mkdir(parents=True, exist_ok=True)
        expected = from_gguf(path, target) if path.suffix == ".gguf" else from_folder(path, target)
        (target / "expected.json").write_text(json.dumps(expected, ensure_ascii=True), encoding="utf-8")
        print(name, len(expected["cases"]))


if __name__ == "__main__":
    main()
