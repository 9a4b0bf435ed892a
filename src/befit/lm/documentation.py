"""English documentation that ships inside installed Python packages: text for training with no download.

Every Python installation carries megabytes of careful English: docstrings, the language reference that `help()`
prints (`pydoc_data/topics.py`), package descriptions and some .rst, .md and .txt files. `documents` collects it by
parsing files with `ast`; nothing is imported or run. The order is fixed (packages as given, files and strings
sorted), so the same packages in the same versions give the same text.

`split` keeps 5 % of the documents for evaluation. It looks only at a document's first 200 characters, so copies of
one docstring that differ further down never stand on both sides.
"""

import ast
import hashlib
import platform
import re
import sysconfig
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from befit.errors import BadData

PYTHON = "python"
"""The name under which the standard library is asked for."""

DEFAULT = (PYTHON, "numpy", "scipy", "torch", "transformers")
"""What the core installation brings; the first is always there."""

MIN_CHARACTERS = 80
"""Shorter documents are dropped: they say little and there are very many of them."""

HELD_OUT_SHARE = 0.05
"""Share of documents kept for evaluation."""

_SPLIT_CHARACTERS = 200
_PROSE_SUFFIXES = (".rst", ".md", ".txt")
_NOT_PROSE = re.compile(r"(?i)licen[cs]e|copying|notice|authors|requirements|cmakelists|entry_points|top_level|words")
_SKIPPED_FOLDERS = {"tests", "test", "_vendor", "vendor", "vendored", "node_modules", "idle_test", "licenses"}
_COMMON = frozenset(
    re.findall(
        r"\w+",
        "the a an of to and or is are be in for if this that with as by on it from not will can which when at you "
        "returns return used using value default should may must use has have only all any each one",
    )
)
_MIN_COMMON = 0.14
_MIN_ASCII = 0.97
_MIN_LETTERS = 0.55


@dataclass(frozen=True, kw_only=True)
class Document:
    """One docstring or one documentation file, cleaned."""

    package: str
    """The distribution it ships with, or `python` for the standard library."""
    text: str
    """At least `MIN_CHARACTERS` characters of mostly English prose, dedented, without doctests."""


def documents(
    packages: Sequence[str] = (),
    *,
    folders: Sequence[str | Path] = (),
    limit_characters: int | None = None,
) -> Iterator[Document]:
    """The documentation of `packages`, distribution by distribution, without duplicates.

    `packages` are names as pip knows them, or `python`; none means those of `DEFAULT` that are installed. `folders`
    are site-packages directories to look in; none means the running interpreter's. Collection stops before
    `limit_characters` would be passed. Raises `BadData` when a named package is not installed.
    """
    names = tuple(packages) or tuple(name for name in DEFAULT if _is_installed(name, folders))
    seen, taken = set[bytes](), 0
    for name in names:
        for text in _package_texts(name, folders):
            key = hashlib.blake2b(" ".join(text.split()).encode(), digest_size=16).digest()
            if key in seen:
                continue
            if limit_characters is not None and taken + len(text) > limit_characters:
                return
            seen.add(key)
            taken += len(text)
            yield Document(package=name, text=text)


def split(document: Document) -> Literal["train", "held_out"]:
    """The side a document is on: a function of its first 200 characters alone, 5 % held out."""
    return "held_out" if is_held_out(document.text) else "train"


def is_held_out(text: str, share: float = HELD_OUT_SHARE) -> bool:
    """Whether a text belongs to the held-out `share`, by a hash of its first 200 characters."""
    head = " ".join(text[:_SPLIT_CHARACTERS].split()).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(head, digest_size=8).digest(), "big") < share * 2**64


def versions(packages: Sequence[str], *, folders: Sequence[str | Path] = ()) -> dict[str, str]:
    """The installed version of each package. Raises `BadData` when one is not installed."""
    return {
        name: platform.python_version() if name == PYTHON else _distribution(name, folders).version for name in packages
    }


def clean(text: str) -> str:
    """Dedent; drop doctests, table rules and rows of numbers, and the headings that this leaves empty."""
    lines, in_doctest = list[str](), False
    for line in _dedent(text).expandtabs().splitlines():
        stripped = line.strip()
        in_doctest = stripped.startswith((">>>", "In [")) or (in_doctest and bool(stripped))
        if not in_doctest and not _is_noise(stripped):
            lines.append(line.rstrip())
    kept = [line for i, line in enumerate(lines) if not _is_empty_heading(lines, i)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()


def is_english(text: str) -> bool:
    """Whether a text is mostly ASCII letters and has the share of common words that English prose has."""
    ascii_count = len(text.encode("ascii", "ignore"))
    if ascii_count < _MIN_ASCII * len(text):
        return False
    words = re.findall(r"[a-z]+", text.lower())
    solid = len(text) - text.count(" ") - text.count("\n")
    if sum(map(len, words)) < _MIN_LETTERS * solid:
        return False
    return sum(word in _COMMON for word in words) >= _MIN_COMMON * len(words)


def strings(source: str) -> Iterator[str]:
    """The documentation strings of Python source: docstrings, strings under fields, and long strings that a
    statement hands to a call, which is how NumPy and PyTorch document functions written in C.

    Source that does not parse under this Python gives nothing.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old source: invalid escapes, `is` with literals
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    yield from _body_strings(tree.body)


def _package_texts(name: str, folders: Sequence[str | Path]) -> Iterator[str]:
    for path in _python_files() if name == PYTHON else _distribution_files(name, folders):
        try:
            source = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        for raw in _texts_of(path, source):
            if len(raw) >= MIN_CHARACTERS:
                text = clean(raw)
                if len(text) >= MIN_CHARACTERS and is_english(text):
                    yield text


def _texts_of(path: Path, source: str) -> Iterable[str]:
    if path.suffix != ".py":
        return (_without_headers(source) if path.name == "METADATA" else source,)
    if path.parent.name == "pydoc_data":
        return _topics(source)
    return strings(source) if '"""' in source or "'''" in source else ()


def _without_headers(source: str) -> str:
    """The description after the mail-like headers of a distribution's METADATA file."""
    return source.partition("\n\n")[2]


def _topics(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Dict):
            yield from (value for entry in node.values if (value := _constant(entry)) is not None)


def _body_strings(body: Sequence[ast.stmt]) -> Iterator[str]:
    for statement in body:
        match statement:
            case ast.Expr(value=ast.Call() as call):
                for argument in call.args:
                    text = _constant(argument)
                    if text is not None and text.count("\n") > 3:
                        yield text
            case ast.Expr(value=value):
                text = _constant(value)
                if text is not None:
                    yield text
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef() | ast.With():
                yield from _body_strings(statement.body)
            case ast.If() | ast.Try():
                yield from _body_strings(statement.body)
                yield from _body_strings(statement.orelse)
            case _:
                pass


def _constant(node: ast.expr) -> str | None:
    """The text of a string literal, also under `.format(...)` or a chain of `+`."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.Call(func=ast.Attribute(value=ast.Constant(value=str(text)), attr="format")):
            return text
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            parts = [part for part in (_constant(left), _constant(right)) if part is not None]
            return "".join(parts) or None
        case _:
            return None


def _dedent(text: str) -> str:
    """Dedent as `inspect.cleandoc` does: the first line of a docstring starts right after the quotes."""
    first, newline, rest = text.partition("\n")
    return first.strip() + newline + textwrap.dedent(rest)


def _is_noise(line: str) -> bool:
    """A table rule, or a line of mostly digits and punctuation; heading underlines stay."""
    if len(line) < 4 or (len(set(line)) == 1 and line[0] in "=-~^*#"):
        return False
    letters = sum(map(str.isalpha, line))
    return letters < 0.4 * (len(line) - line.count(" "))


def _is_empty_heading(lines: Sequence[str], index: int) -> bool:
    """A heading, or its underline, after which nothing comes before the next heading or the end."""
    start = index if _is_underline(lines, index) else index + 1
    if not _is_underline(lines, start):
        return False
    after = start + 1
    while after < len(lines) and not lines[after].strip():
        after += 1
    return after >= len(lines) or _is_underline(lines, after + 1)


def _is_underline(lines: Sequence[str], index: int) -> bool:
    line = lines[index].strip() if 0 < index < len(lines) else ""
    return len(line) > 2 and len(set(line)) == 1 and line[0] in "=-~^" and bool(lines[index - 1].strip())


def _python_files() -> Iterator[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    relative = (path.relative_to(root) for path in root.rglob("*.py") if path.is_file())
    wanted = (path for path in relative if "site-packages" not in path.parts and _is_wanted(path))
    yield from (root / path for path in sorted(wanted, key=Path.as_posix))


def _distribution_files(name: str, folders: Sequence[str | Path]) -> Iterator[Path]:
    distribution = _distribution(name, folders)
    wanted = (path for path in distribution.files or () if _is_wanted(path))
    for path in sorted(wanted, key=lambda path: path.as_posix()):
        yield Path(str(distribution.locate_file(path)))


def _is_wanted(path: "metadata.PackagePath | Path") -> bool:
    if ".." in path.parts or _SKIPPED_FOLDERS.intersection(path.parts) or path.name.startswith("test_"):
        return False
    if path.parts[0].endswith(".dist-info"):
        return path.name == "METADATA"
    return path.suffix == ".py" or (path.suffix in _PROSE_SUFFIXES and not _NOT_PROSE.search(path.name))


def _distribution(name: str, folders: Sequence[str | Path]) -> metadata.Distribution:
    try:
        if not folders:
            return metadata.distribution(name)
        found = metadata.distributions(name=name, path=[str(folder) for folder in folders])
        return next(iter(found))
    except (metadata.PackageNotFoundError, StopIteration):
        where = ", ".join(map(str, folders)) or "this environment"
        raise BadData(
            f"documentation: package {name!r} is not installed in {where}; install it, or leave it out of the list"
        ) from None


def _is_installed(name: str, folders: Sequence[str | Path]) -> bool:
    try:
        return name == PYTHON or bool(_distribution(name, folders).version)
    except BadData:
        return False
