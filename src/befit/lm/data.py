"""Text in, token blocks out.

Source -> `Texts` (documents) -> `split` (train and held-out documents, none shared) -> `pack` (rows of exactly
`length` tokens: documents in a shuffled order, each followed by the end-of-text token, cut without padding).
`load_blocks` does all three. The same source, tokenizer and seed give the same rows; `digest` names their content.
"""

import gzip
import hashlib
import json
import lzma
import random
import re
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import LongTensor, Tensor
from transformers import PreTrainedTokenizerBase

from befit.errors import BadData
from befit.lm.documentation import HELD_OUT_SHARE, documents, is_held_out

DEFAULT_CHARACTERS = 6_000_000
"""Characters of the default source: about 1.8 million tokens of the embedded parent, collected in under 10 s."""

MAX_CHARACTERS = 200_000_000
"""Characters read from any other source; what follows is left unread."""

_PIECE_CHARACTERS = 2_000
_BATCH_DOCUMENTS = 512
_SUFFIXES = (".txt", ".jsonl")
_OPENERS: dict[str, Callable[[Path], IO[bytes]]] = {".xz": lzma.open, ".gz": gzip.open}  # type: ignore[assignment]
_EXPECTED = (
    "expected a .txt or .jsonl file (also .gz or .xz), a folder of such files, "
    "or a dataset of the hub as OWNER/NAME[:CONFIG[:SPLIT]]"
)
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+){0,2}")


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Documents and where they came from."""

    source: str
    """The source as messages name it."""
    documents: tuple[str, ...]
    """Non-empty texts, in the source's order."""

    def split(self, share: float = HELD_OUT_SHARE) -> "tuple[Texts, Texts]":
        """Train and held-out documents: by a hash of a document's first 200 characters, so copies stay together."""
        held_out = [is_held_out(text, share) for text in self.documents]
        return tuple(
            Texts(
                source=f"{self.source}, {name}",
                documents=tuple(t for t, h in zip(self.documents, held_out, strict=True) if h is want),
            )
            for name, want in (("train part", False), ("held-out part", True))
        )  # type: ignore[return-value]


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Token rows for training and for evaluation; no document is in both."""

    train: LongTensor
    """(N, T) token ids."""
    held_out: LongTensor
    """(M, T) token ids."""

    @property
    def digest(self) -> str:
        """sha256 hex of both parts, shapes included."""
        return digest(self.train, self.held_out)


def load_blocks(
    source: str | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    train_rows: int,
    held_out_rows: int,
    seed: int = 0,
) -> Blocks:
    """At most `train_rows` and exactly `held_out_rows` rows of `length` tokens from `source` (as in `load_texts`).

    Raises `BadData` when the source holds less than one training row or fewer held-out rows than asked for.
    """
    train, held_out = load_texts(source).split()
    return Blocks(
        train=pack(train, tokenizer, length, train_rows * length, seed),
        held_out=pack(held_out, tokenizer, length, held_out_rows * length, seed, at_least=held_out_rows),
    )


def load_texts(source: str | None, *, field: str = "text", limit_characters: int | None = None) -> Texts:
    """Read documents from a file, a folder, a hub dataset, or (None) the documentation of installed packages.

    A .txt file is cut at blank lines into documents of about 2,000 characters; each line of a .jsonl file is an
    object whose `field` is one document. Raises `BadData` naming what was given, what was expected and what to do.
    """
    if source is None:
        found = documents(limit_characters=limit_characters or DEFAULT_CHARACTERS)
        return Texts(source="documentation of installed packages", documents=tuple(d.text for d in found))
    path = Path(source).expanduser()
    if path.exists():
        read = _read_paths(path, source, field)
    elif _HUB_NAME.fullmatch(source) and not _data_suffix(path):
        read = _read_hub(source, field)
    else:
        raise BadData(f"data: there is no file or folder {source!r}; {_EXPECTED}")
    texts = tuple(_limited(read, limit_characters or MAX_CHARACTERS))
    if not texts:
        raise BadData(f"data: {source} holds no text; give a source with at least a few thousand words")
    return Texts(source=source, documents=texts)


def pack(
    texts: Texts,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    limit_tokens: int | None = None,
    seed: int = 0,
    *,
    at_least: int = 1,
) -> LongTensor:
    """(N, length) token ids: shuffled documents, each followed by the end-of-text token, the last partial row dropped.

    Tokenizing stops once `limit_tokens` are there; N is then `limit_tokens // length`. Raises `BadData` when there
    are fewer than `at_least` rows, or the tokenizer has no end-of-text token.
    """
    end = tokenizer.eos_token_id
    if not isinstance(end, int):
        raise BadData(f"data: the tokenizer {tokenizer.name_or_path!r} has no end-of-text token; set its eos_token")
    order = list(range(len(texts.documents)))
    random.Random(seed).shuffle(order)
    rows = None if limit_tokens is None else limit_tokens // length
    ids = array("i")  # 4 bytes a token, where a list takes 36
    for start in range(0, len(order), _BATCH_DOCUMENTS):
        batch = [texts.documents[i] for i in order[start : start + _BATCH_DOCUMENTS]]
        for document in tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]:
            ids.extend(document)  # type: ignore[arg-type]
            ids.append(end)
        if rows is not None and len(ids) >= rows * length:
            break
    count = len(ids) // length if rows is None else min(rows, len(ids) // length)
    if count < at_least:
        raise BadData(
            f"data: {texts.source} gives {len(ids):,} tokens, but {at_least * length:,} are needed "
            f"({at_least} rows of {length}); give more text or ask for fewer or shorter rows"
        )
    return torch.tensor(ids[: count * length]).long().view(count, length)  # type: ignore[return-value]


def digest(*blocks: Tensor) -> str:
    """sha256 hex of the tensors' shapes, types and values."""
    state = hashlib.sha256()
    for block in blocks:
        state.update(f"{block.dtype}{tuple(block.shape)}".encode())
        state.update(block.detach().cpu().contiguous().numpy().tobytes())
    return state.hexdigest()


def stamp(data: str | None) -> list[tuple[str, int, int]]:
    """Names, sizes and times of the files that hold the text: changed files are another text. Nothing for other sources."""
    root = Path(data) if data else None
    if root is None or not root.exists():
        return []
    files = sorted(root.rglob("*")) if root.is_dir() else [root]
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.is_file()]


def _limited(texts: Iterable[str], limit_characters: int) -> Iterator[str]:
    taken = 0
    for text in texts:
        if text.strip():
            yield text
            taken += len(text)
            if taken >= limit_characters:
                return


def _data_suffix(path: Path) -> str | None:
    """`.txt` or `.jsonl`, also under `.gz` or `.xz`; None for any other name."""
    suffix = Path(path.stem).suffix if path.suffix in _OPENERS else path.suffix
    return suffix.lower() if suffix.lower() in _SUFFIXES else None


def _read_paths(path: Path, source: str, field: str) -> Iterator[str]:
    if not path.is_dir():
        return _read_file(path, field)
    files = sorted(p for p in path.rglob("*") if p.is_file() and _data_suffix(p))
    if not files:
        raise BadData(f"data: the folder {source} holds no .txt or .jsonl file; {_EXPECTED}")
    return (text for file in files for text in _read_file(file, field))


def _read_file(path: Path, field: str) -> Iterator[str]:
    suffix = _data_suffix(path)
    if suffix is None:
        raise BadData(f"data: {path} is neither .txt nor .jsonl; {_EXPECTED}")
    text = _decoded(path)
    return _jsonl_documents(text, path, field) if suffix == ".jsonl" else _pieces(text)


def _decoded(path: Path) -> str:
    try:
        with _OPENERS.get(path.suffix, Path.open)(path, "rb") as file:  # type: ignore[call-arg]
            text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadData(
            f"data: {path} is not UTF-8 text (byte {error.start:,} cannot be read); convert it, or give another file"
        ) from error
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise BadData(f"data: {path} cannot be read ({error}); check the file, or give another one") from error
    if "\0" in text:
        raise BadData(f"data: {path} holds zero bytes, so it is binary data, not text; {_EXPECTED}")
    return text.replace("\r\n", "\n")


def _jsonl_documents(text: str, path: Path, field: str) -> Iterator[str]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _field_of(line, f"{path}, line {number}", field)


def _field_of(line: str, where: str, field: str) -> str:
    expected = f'expected one JSON object a line with a text under {field!r}, such as {{"{field}": "..."}}'
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise BadData(f"data: {where} is not JSON ({error}); {expected}") from error
    return _text_of(entry, where, field, expected)


def _text_of(entry: Any, where: str, field: str, expected: str) -> str:
    if not isinstance(entry, dict):
        raise BadData(f"data: {where} holds a {type(entry).__name__}; {expected}")
    if not isinstance(entry.get(field), str):
        what = f"no {field!r}" if field not in entry else f"a {type(entry[field]).__name__} under {field!r}"
        raise BadData(f"data: {where} has {what}, its keys are {sorted(map(str, entry))}; {expected}")
    return entry[field]


def _pieces(text: str) -> Iterator[str]:
    """Cut running text into documents of about `_PIECE_CHARACTERS`: at blank lines, else at line ends, else anywhere."""
    paragraphs = re.split(r"(?<=\n)(?=\n)", text) if "\n\n" in text else text.splitlines(keepends=True)
    piece = ""
    for paragraph in paragraphs:
        piece += paragraph
        while len(piece) > 4 * _PIECE_CHARACTERS:
            yield piece[: 4 * _PIECE_CHARACTERS]
            piece = piece[4 * _PIECE_CHARACTERS :]
        if len(piece) >= _PIECE_CHARACTERS:
            yield piece.strip("\n")
            piece = ""
    yield piece.strip("\n")


def _read_hub(source: str, field: str) -> Iterator[str]:
    """Stream `OWNER/NAME[:CONFIG[:SPLIT]]`; the split is `train` unless named."""
    try:
        import datasets
    except ImportError as error:
        raise BadData(f"data: {source!r} names a dataset of the hub, which needs `pip install datasets`") from error
    name, config, part = [*source.split(":"), None, None][:3]
    expected = f"expected a column of texts named {field!r}"
    try:
        rows = datasets.load_dataset(str(name), config, split=part or "train", streaming=True)
        for number, row in enumerate(rows):
            yield _text_of(row, f"{source}, row {number}", field, expected)
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, BadData):
            raise
        raise BadData(
            f"data: there is no file or folder {source!r}, and the hub dataset of that name cannot be read "
            f"({type(error).__name__}: {error}); {_EXPECTED}"
        ) from error
