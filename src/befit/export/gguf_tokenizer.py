"""A tokenizer as llama.cpp keeps it in a GGUF file: byte-level BPE, from the checkpoint's tokenizer.json.

llama.cpp knows how to split text before the merges by name only; the names here are those whose rule is the one that
tokenizer.json spells out.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from befit.errors import UnsupportedModel

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Kinds of tokens, as the file numbers them."""

WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
MARK = r"[^\r\n\p{L}\p{N}]?"
RULES = {
    rf"{ENDINGS}|{WORDS}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{REST}": "llama-bpe",
    rf"{ENDINGS}|{WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{REST}": "qwen2",
    rf"{MARK}{UPPER}*{LOWER}+|{MARK}{UPPER}+{LOWER}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{REST}": "tekken",
}
"""Regular expressions that split text, and llama.cpp's names for them: those of Llama 3, Qwen 2 and 3, Mistral Nemo."""

UNMERGED = "smaug-bpe"
"""Llama 3's rule for a tokenizer that does not look a whole word up before it merges."""


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """What the file says of the tokenizer."""

    tokens: tuple[str, ...]
    """One for each row of the embedding, by id."""
    kinds: tuple[int, ...]
    merges: tuple[str, ...]
    """Two pieces with a space between them, first merge first."""
    rule: str
    """How text is split before the merges, by llama.cpp's name."""
    add_bos: bool
    """Whether text begins with the token that begins a sequence."""
    chat_template: str | None


def read_tokens(folder: Path, vocab: int) -> Tokens:
    """The tokenizer of a checkpoint with `vocab` rows of embedding.

    Raises `UnsupportedModel` if there is none, or none that llama.cpp has as byte-level BPE with a rule known here.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise UnsupportedModel(
            f"{folder} has no tokenizer.json, without which llama.cpp cannot read text; copy it there"
        )
    told = json.loads(file.read_text(encoding="utf-8"))
    model = told["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise UnsupportedModel(
            f"{file} is a {model.get('type')} tokenizer{' of SentencePiece' if model.get('byte_fallback') else ''}; "
            "befit writes byte-level BPE (Llama 3, Qwen, Mistral Nemo and later, befit's own) for llama.cpp"
        )
    names = [f"[PAD{i}]" for i in range(vocab)]
    kinds = [UNUSED] * vocab
    added = {entry["id"]: entry for entry in told.get("added_tokens", [])}
    for name, number in (model["vocab"] | {entry["content"]: number for number, entry in added.items()}).items():
        if number >= vocab:
            raise UnsupportedModel(f"{file} has a token {number}, the model only {vocab} rows of embedding")
        names[number] = name
        kinds[number] = NORMAL if number not in added else CONTROL if added[number]["special"] else USER_DEFINED
    merges = (merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
    return Tokens(
        tokens=tuple(names),
        kinds=tuple(kinds),
        merges=tuple(merges),
        rule=_rule(told, file),
        add_bos=_begins(told.get("post_processor")),
        chat_template=_chat_template(folder),
    )


def _rule(told: Mapping[str, Any], file: Path) -> str:
    """llama.cpp's name for how text is split."""
    given = told.get("pre_tokenizer") or {}
    steps = given.get("pretokenizers", [given])
    if [step.get("type") for step in steps] == ["ByteLevel"]:
        if steps[0].get("use_regex", True) and not steps[0].get("add_prefix_space"):
            return "gpt-2"
    elif [step.get("type") for step in steps] == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True):
        rule = RULES.get(steps[0].get("pattern", {}).get("Regex"))
        if rule == "llama-bpe" and not told["model"].get("ignore_merges"):
            return UNMERGED
        if rule is not None:
            return rule
    raise UnsupportedModel(
        f"{file} splits text by a rule that has no name in llama.cpp that befit knows "
        f"({json.dumps(given, ensure_ascii=False)[:200]}); known: those of GPT-2, Llama 3, Qwen 2 and Mistral Nemo"
    )


def _begins(processor: Mapping[str, Any] | None) -> bool:
    """Whether the post-processor puts a special token before a text."""
    if processor is None:
        return False
    for step in processor.get("processors", [processor]):
        if step.get("type") == "TemplateProcessing" and "SpecialToken" in step["single"][0]:
            return True
    return False


def _chat_template(folder: Path) -> str | None:
    """From its own file, or from tokenizer_config.json; None if there is none or several by name."""
    own, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if own.is_file():
        return own.read_text(encoding="utf-8")
    told = json.loads(config.read_text(encoding="utf-8")).get("chat_template") if config.is_file() else None
    return told if isinstance(told, str) else None
