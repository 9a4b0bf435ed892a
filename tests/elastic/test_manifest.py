"""nested.json: strict, and true to the files beside it."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.elastic.nesteds import nested_of

from befit.elastic.manifest import Manifest, Quality, check_files, evaluated, note_files, read_manifest, write_manifest
from befit.elastic.nested import write_nested
from befit.errors import RunConflict


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("manifest") / "nested"
    write_nested(folder, nested_of(ffn_per_layer=True))
    return folder


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    for file in written.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


SHAPE = nested_of(ffn_per_layer=True).net.shape


def test_read_equals_written(written: Path) -> None:
    manifest = read_manifest(written, SHAPE)
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json())), SHAPE) == manifest
    assert [entry.target.share for entry in manifest.entries] == [1.0, 0.75, 0.5]
    assert all(len(entry.hash) == 64 and entry.quality is None for entry in manifest.entries)
    assert manifest.files == note_files(written)


def test_quality_is_entered_by_share(copy: Path) -> None:
    manifest = read_manifest(copy, SHAPE)
    write_manifest(copy, evaluated(manifest, {0.5: Quality(kl=0.25, loss=3.0)}, {0.75: 4.0}))
    whole, larger, smaller = read_manifest(copy, SHAPE).entries
    assert (whole.quality, larger.quality, smaller.quality) == (None, None, Quality(kl=0.25, loss=3.0))
    assert (whole.latency_ms, larger.latency_ms, smaller.latency_ms) == (None, 4.0, None)


def change(folder: Path, *path: Any, to: Any = None) -> None:
    """Set, or without a value delete, what lies under `path` in the manifest."""
    file = folder / "nested.json"
    told = json.loads(file.read_text())
    place = told
    for step in path[:-1]:
        place = place[step]
    if to is None:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    file.write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("version",), 2, "version 2"),
        (("version",), None, "version None"),
        (("extra",), 1, r"unknown keys \['extra'\]"),
        (("gains",), None, r"missing keys \['gains'\]"),
        (("entries", 0, "extra"), 1, r"unknown keys \['extra'\]"),
        (("entries", 0, "hash"), None, r"missing keys \['hash'\]"),
        (("entries", 0, "target", "cost"), "beauty", "beauty"),
        (("entries", 1, "member", "hidden"), None, "damaged"),
        (("entries", 1, "cost"), 5, "expected an object"),
        (("workload", "batch"), 0, "damaged"),
        (("space", "removal"), "none", "damaged"),
        (("files", "model.safetensors", "bytes"), 7, "written for 7 bytes"),
        (("files", "model.safetensors", "md5"), "x", r"unknown keys \['md5'\]"),
    ],
)
def test_anything_else_is_refused(copy: Path, path: tuple[Any, ...], value: Any, message: str) -> None:
    change(copy, *path, to=value)
    with pytest.raises(RunConflict, match=message):
        read_manifest(copy, SHAPE)


def test_a_torn_manifest_is_refused(copy: Path) -> None:
    file = copy / "nested.json"
    file.write_text(file.read_text()[:100])
    with pytest.raises(RunConflict, match="damaged"):
        read_manifest(copy, SHAPE)
    file.unlink()
    with pytest.raises(RunConflict, match="holds no nested model"):
        read_manifest(copy, SHAPE)


def test_weights_that_are_not_there_or_changed_are_found(copy: Path) -> None:
    manifest = read_manifest(copy, SHAPE)
    check_files(copy, manifest)
    file = copy / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert read_manifest(copy, SHAPE) == manifest, "opening compares sizes only"
    with pytest.raises(RunConflict, match="was changed"):
        check_files(copy, manifest)
    file.unlink()
    with pytest.raises(RunConflict, match="is missing"):
        read_manifest(copy, SHAPE)
