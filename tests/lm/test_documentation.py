"""Documentation text: what counts, what is dropped, in which order, on which side."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from befit.errors import BadData
from befit.lm.documentation import (
    PYTHON,
    Document,
    clean,
    documents,
    is_english,
    is_held_out,
    split,
    strings,
    versions,
)

PROSE = "This is the text of a function that returns the value which is used for all of the tests in this file."


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site-packages folder with one distribution, `prose` 1.2."""
    files = {
        "prose/__init__.py": f'"""{PROSE} Package."""\nraise RuntimeError("imported")\n',
        "prose/b.py": f'def f():\n    """{PROSE} Of b."""\n\nclass C:\n    """{PROSE} Package."""\n',
        "prose/a.py": f'class A:\n    """{PROSE} Of a.\n\n    >>> A()\n    A(1)\n    """\n    x = 1\n    """{PROSE} Of x."""\n',
        "prose/broken.py": f'def f(:\n    """{PROSE} Broken."""\n',
        "prose/old.py": f'r = "\\d"\ndef f():\n    """{PROSE} Old \\d."""\n',
        "prose/latin.py": b'"""' + PROSE.encode() + b' \xe9"""\n',
        "prose/short.py": '"""It is the short one."""\n',
        "prose/tests/c.py": f'"""{PROSE} Test."""\n',
        "prose/guide.rst": f"{PROSE} Guide.\n",
        "prose/LICENSE.txt": f"{PROSE} Licence.\n",
        "prose-1.2.dist-info/METADATA": f"Metadata-Version: 2.1\nName: prose\nVersion: 1.2\n\n{PROSE} Description.\n",
    }
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "prose-1.2.dist-info" / "RECORD").write_text("".join(f"{name},,\n" for name in files))
    return tmp_path


def test_collects_what_ships_and_nothing_else(site: Path) -> None:
    found = list(documents(["prose"], folders=[site]))
    endings = [document.text.removeprefix(PROSE).strip() for document in found]
    assert endings == ["Description.", "Package.", "Of a.", "Of x.", "Of b.", "Guide.", "Old \\d."]
    assert {document.package for document in found} == {"prose"}
    assert versions(["prose"], folders=[site]) == {"prose": "1.2"}


def test_stops_before_the_limit(site: Path) -> None:
    texts = [document.text for document in documents(["prose"], folders=[site])]
    limit = sum(map(len, texts[:3]))
    assert [d.text for d in documents(["prose"], folders=[site], limit_characters=limit)] == texts[:3]
    assert [d.text for d in documents(["prose"], folders=[site], limit_characters=limit - 1)] == texts[:2]


def test_an_absent_package_is_named() -> None:
    with pytest.raises(BadData, match="'no-such-package' is not installed"):
        list(documents(["no-such-package"]))


def test_the_standard_library_is_read_in_the_same_order_by_another_process() -> None:
    command = (
        "import hashlib; from befit.lm.documentation import documents;"
        "print(hashlib.sha256(''.join(d.text for d in documents(['python'], limit_characters=100_000)).encode()).hexdigest())"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-W", "error", "-c", command], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    assert runs[0] == runs[1] and len(runs[0].strip()) == 64
    assert next(documents([PYTHON])).package == PYTHON


def test_docstrings_are_those_that_ast_finds() -> None:
    source = Path(ast.__file__).read_text()
    nodes = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)]
    expected = {text for node in nodes if (text := ast.get_docstring(node, clean=False))}
    assert expected and expected <= set(strings(source))


def test_strings_handed_to_calls_count_when_they_are_long() -> None:
    long = "First line\n\nthen more\n\nand more\n"
    source = f'add_docstr(f, r"""{long}""".format(x=1) + """tail""")\nadd("""short""")\nx = call("""{long}""")\n'
    assert list(strings(source)) == [long + "tail"]


def test_cleaning_drops_doctests_tables_and_the_headings_left_empty() -> None:
    raw = """Sum of squares.

        Examples
        --------
        >>> f([1, 2,
        ...    3])
        array([ 1.0,  4.0,
                9.0])

        Notes
        -----
        +-----+-----+
        | 1.0 | 2.0 |
        +-----+-----+
        Indented text
            stays indented.
        """
    assert clean(raw) == "Sum of squares.\n\nNotes\n-----\nIndented text\n    stays indented."


@pytest.mark.parametrize(
    ("text", "english"),
    [
        (PROSE, True),
        ("Dies ist der Text einer Funktion, die den Wert liefert, der hier in allen Versuchen verwendet wird.", False),
        ("Это текст функции, которая возвращает значение. " * 3, False),
        ("0.1 0.2 0.3 the 0.4 0.5 of 0.6 0.7 is 0.8 " * 5, False),
        ("alpha, beta, gamma, delta, epsilon, zeta, eta, theta, iota, kappa, lambda, mu, nu, xi, omicron", False),
    ],
)
def test_english(text: str, english: bool) -> None:
    assert is_english(text) is english


@given(st.text(min_size=200, max_size=300), st.text(max_size=50))
def test_copies_that_differ_after_200_characters_stay_on_one_side(text: str, tail: str) -> None:
    assert is_held_out(text) == is_held_out(text[:200] + tail)


def test_about_five_percent_are_held_out() -> None:
    sides = [split(Document(package="x", text=f"document {i}")) for i in range(4000)]
    assert 150 < sides.count("held_out") < 250  # 200 expected, standard deviation 14
    assert set(sides) == {"train", "held_out"}
