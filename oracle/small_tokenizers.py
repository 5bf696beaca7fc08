"""Trains small tokenizers of each kind into oracle/vectors/tokenizers, with the ids that the library gives for awkward texts.

    python oracle/small_tokenizers.py

Needs tokenizers 0.23 and transformers 5.23.
"""

import json
import pathlib

from encode import from_folder
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

OUT = pathlib.Path(__file__).parent / "vectors" / "tokenizers"

CORPUS = [
    "The quick brown fox jumps over the lazy dog. The dog sleeps, and the fox runs away.",
    "I'm sure you're right; they'd say that we've done it. It's what he'll want.",
    "def add(a, b):\n    return a + b\n\nfor i in range(10):\n    print(add(i, 2))\n",
    "Die Katze schläft über dem Ofen. Привет, мир! Мир большой. 你好世界 世界你好 日本語の世界",
    "नमस्ते दुनिया 🙂🙂 👍 👍🏽 1234 5678 2024 100 000",
    "    indented     by     many     spaces\t\ttabs\n\n\nlines",
] * 3


def train(model, trainer, normalizer, pre_tokenizer, decoder):
    tokenizer = Tokenizer(model)
    if normalizer:
        tokenizer.normalizer = normalizer
    if pre_tokenizer:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoder
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def byte_level():
    """As SmolLM2: digits apart, then GPT-2's bytes."""
    tokenizer = train(
        models.BPE(),
        trainers.BpeTrainer(vocab_size=420, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False),
        None,
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
        decoders.ByteLevel(),
    )
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    return tokenizer, {"bos_token": "<|im_start|>", "eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "special": True}, "add_bos_token": True, "tokenizer_class": "GPT2Tokenizer"}


def split_bytes():
    """As Llama 3 and Qwen: a regular expression, NFC, whole words first, a token before the text."""
    regex = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer = train(
        models.BPE(ignore_merges=True),
        trainers.BpeTrainer(vocab_size=400, special_tokens=["<|begin_of_text|>", "<|eot_id|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False),
        normalizers.NFC(),
        pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(regex), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]),
        decoders.ByteLevel(),
    )
    tokenizer.post_processor = processors.TemplateProcessing("<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)])
    return tokenizer, {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}


def byte_fallback():
    """As Llama 2: SentencePiece BPE, a space before the text, bytes for what is not in the vocabulary."""
    special = ["<unk>", "<s>", "</s>"]
    tokenizer = train(
        models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True),
        trainers.BpeTrainer(vocab_size=520, special_tokens=special + [f"<0x{byte:02X}>" for byte in range(256)], limit_alphabet=70, show_progress=False),
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        pre_tokenizers.Split("▁", "merged_with_next"),
        decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]),
    )
    # The trainer makes the byte tokens special; in real vocabularies they are ordinary ones.
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in special]
    state["pre_tokenizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def metaspace():
    """As T5: a unigram model between Metaspace steps."""
    tokenizer = train(
        models.Unigram(),
        trainers.UnigramTrainer(vocab_size=260, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False),
        normalizers.NFKC(),
        pre_tokenizers.Metaspace(),
        decoders.Metaspace(),
    )
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer, {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


for make in [byte_level, split_bytes, byte_fallback, metaspace]:
    tokenizer, config = make()
    folder = OUT / make.__name__
    folder.mkdir(parents=True, exist_ok=True)
    state = json.loads(tokenizer.to_str())
    (folder / "tokenizer.json").write_text(json.dumps(state, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config) + "\n", encoding="utf-8")
    expected = from_folder(folder, folder, count=40)
    (folder / "expected.json").write_text(json.dumps(expected, separators=(",", ":")) + "\n", encoding="utf-8")
    print(make.__name__, expected["vocab_size"], len(expected["cases"]), len(expected["id_cases"]))
