"""What every page shares: it stands alone, and its file is replaced in one step."""

import hashlib
import re
from base64 import b64encode
from pathlib import Path

import pytest

from befit.report import frame


def test_the_policy_allows_the_pages_own_scripts_and_no_other() -> None:
    html = frame.document("T <i>", "<p>body</p>", styles=["elastic.css"], scripts=["panel.js"])
    scripts = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    hashes = [f"'sha256-{b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts]
    assert len(scripts) == 1 and f'script-src {hashes[0]}"' in html
    assert ".sizes {" in html and "<title>T &lt;i&gt;</title>" in html
    bare = frame.document("T", "<p>body</p>")
    assert "script-src 'none'" in bare and ".sizes {" not in bare and "<script" not in bare


def test_a_page_replaces_the_old_one_or_leaves_it(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    frame.write("first \ud800", path)
    frame.write("second", path)
    assert path.read_text(encoding="utf-8") == "second" and list(tmp_path.iterdir()) == [path]
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(IsADirectoryError):
        frame.write("third", tmp_path / "folder.html")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder.html", "report.html"]


def test_a_section_without_a_body_is_left_out() -> None:
    assert frame.section("Title", "", "caption") == "" == frame.notes([]) == frame.notes(None)
    assert "<h2>A &amp; B</h2>" in frame.section("A & B", "<p></p>", "")
    assert frame.notes(["a <b>", None]) == '<ul class="notes"><li>a &lt;b&gt;</li></ul>'


def test_words_are_joined_as_people_join_them() -> None:
    assert [frame.listed(words) for words in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
    assert frame.workload({"batch": 4, "prompt": 1024, "cache": "fp32"}) == (
        "4 requests at a time, 1\u202f024 prompt tokens, cache in fp32"
    )
    assert frame.workload(None) == ""
