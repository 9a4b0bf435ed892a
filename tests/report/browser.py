"""How the tests of the pages read one: as text, and as a reader sees it in headless Chromium with the network cut off."""

import hashlib
import json
import math
import re
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

CHROMIUM = "/usr/bin/chromium"
EVIL = """<img src=x onerror="document.title='owned'"><script>document.title='owned'</script>"'&"""


class Page(HTMLParser):
    """Elements of a page: attributes by tag, and its text outside scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self._silent = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self._silent += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._silent -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.text.append(data)


JUNK = (None, EVIL, True, -1, 0, math.nan, math.inf, [], {}, [None, 1], {"x": EVIL})


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every node; of a list only the first item, the others are alike."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, item in items:
        yield from paths(item, (*path, key))


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What one visit to the page showed."""

    dom: str
    """The document after its scripts ran."""
    console: list[str]
    """Everything written to the console, errors included."""
    requests: list[str]
    """Addresses the page (not the browser) asked the network for."""

    @property
    def probe(self) -> dict[str, Any]:
        found = re.search(r'id="probe">(.*?)</script>', self.dom, flags=re.DOTALL)
        assert found, "the probe did not run"
        return json.loads(unquote(found[1]))


def visit(page: Path, folder: Path, *flags: str) -> Seen:
    """Open a file in a fresh headless Chromium that can reach no host."""
    log = folder / f"{page.stem}-network.json"
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--log-net-log={log}", "--enable-logging=stderr"]
    command += [
        f"--user-data-dir={folder / 'profile'}",
        "--virtual-time-budget=4000",
        *flags,
        "--dump-dom",
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    events = [event.get("params") or {} for event in json.loads(log.read_text())["events"]]
    # The browser's own requests have no origin; a page opened from disk has the origin "null".
    asked = {e["url"] for e in events if "url" in e and e.get("initiator") not in (None, "not an origin")}
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return Seen(
        dom=done.stdout, console=console, requests=sorted(u for u in asked if not u.startswith(("file:", "data:")))
    )


def probed(html: str, probe: str, path: Path) -> Path:
    """A page with one more script, which writes what is on the screen into `#probe`; the policy is told of it."""
    script = _WRAP % probe
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    html = html.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    path.write_text(html.replace("</body>\n</html>", f"<script>{script}</script></body></html>"), encoding="utf-8")
    return path


_WRAP = """
const box = (e) => { const r = e.getBoundingClientRect(); return [r.left, r.top, r.width, r.height]; };
const all = (selector) => [...document.querySelectorAll(selector)];
const seen = (() => { %s })();
const out = document.createElement("script");
out.type = "text/plain";
out.id = "probe";
out.textContent = encodeURIComponent(JSON.stringify(seen));
document.body.append(out);
"""
"""Runs a probe, the body of a function, and leaves what it returns in the document."""
