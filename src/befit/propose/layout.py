"""The first rung of the fingerprint: source text without the layout that Python does not read.

The paper (FSAP, arXiv 2512.24120) and LEMUR take all white space out and hash the rest. In Python that merges different
programs: a statement inside a loop with the same one after it, and the strings 'a b' and 'ab'. `layout_key` drops exactly
what the tokenizer drops: blank lines, trailing blanks, blanks between tokens, the depth of indentation (not its structure),
line breaks inside brackets. Strings stay as they are written; comments stay too, as in the paper, without their blanks.
"""

import hashlib
import io
import re
import tokenize

from befit.errors import BadProposal

_SILENT = {tokenize.NL, tokenize.ENCODING, tokenize.ENDMARKER}
_MARKS = {tokenize.INDENT: "\x01", tokenize.DEDENT: "\x02", tokenize.NEWLINE: "\x03"}
# From Python 3.12 on an f-string is several tokens; taken as written, it has one key under any version.
_OPEN = getattr(tokenize, "FSTRING_START", -1)
_CLOSE = getattr(tokenize, "FSTRING_END", -1)


def layout_key(source: str) -> str:
    """Hash of the tokens of a file; 32 hex digits. `BadProposal` (reason "parse") for what is not Python."""
    parts, depth, start = list[str](), 0, (0, 0)
    source = source.replace("\r\n", "\n").replace("\r", "\n")  # as Python reads it
    lines = [line + "\n" for line in source.split("\n")]
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == _OPEN:
                start = start if depth else token.start
                depth += 1
            elif token.type == _CLOSE:
                depth -= 1
                if not depth:
                    parts.append(_between(lines, start, token.end))
            elif not depth and token.type not in _SILENT:
                text = token.string if token.type != tokenize.COMMENT else "".join(token.string.split())
                parts.append(_MARKS.get(token.type, text))
    except (tokenize.TokenError, SyntaxError) as error:
        raise BadProposal(f"not Python: {error.args[0]}", reason="parse") from None
    return hash_of("\x00".join(parts))


def _between(lines: list[str], start: tuple[int, int], end: tuple[int, int]) -> str:
    """Source text from one (line, column) to another."""
    if start[0] == end[0]:
        return lines[start[0] - 1][start[1] : end[1]]
    return "".join([lines[start[0] - 1][start[1] :], *lines[start[0] : end[0] - 1], lines[end[0] - 1][: end[1]]])


def lemur_md5(source: str) -> str:
    """LEMUR's name for a file: MD5 of its text without white space. Unsound as a key; kept to find its rows again."""
    return hashlib.md5(re.sub(r"\s", "", source).encode(), usedforsecurity=False).hexdigest()


def hash_of(text: str) -> str:
    """32 hex digits of a text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
