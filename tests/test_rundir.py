"""Files that are whole or absent, full disks, and run directories that are what they were."""

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from befit import rundir
from befit.errors import DiskFull, RunConflict
from befit.rundir import (
    Run,
    alone,
    check_writable,
    digest,
    read_config,
    read_json,
    read_tensors,
    replacing,
    replacing_folder,
    write_json,
    write_tensors,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_files_hold_what_was_written(tmp_path: Path) -> None:
    write_json(tmp_path / "deep" / "a.json", {"x": [1, 0.1, None, "ü"]})
    assert read_json(tmp_path / "deep" / "a.json") == {"x": [1, 0.1, None, "ü"]}
    tensors = {"w": torch.arange(6.0).view(2, 3).t(), "b": torch.ones(2, dtype=torch.bfloat16)}
    write_tensors(tmp_path / "t.safetensors", tensors)
    found = read_tensors(tmp_path / "t.safetensors")
    assert set(found) == {"w", "b"} and all(found[name].equal(tensors[name]) for name in found)
    assert names(tmp_path) == ["deep", "t.safetensors"]


def test_tied_weights_are_written_each(tmp_path: Path) -> None:
    tied = torch.randn(3, 2)
    write_tensors(tmp_path / "t", {"first": tied, "second": tied})
    found = read_tensors(tmp_path / "t")
    assert torch.equal(found["first"], tied) and torch.equal(found["second"], tied)


def test_a_block_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")

    def fail() -> None:
        with replacing(tmp_path / "a") as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "old"
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a", float("nan"))
    assert (tmp_path / "a").read_text() == "old"


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(os, "fsync", lambda number: seen.append((tmp_path / "a").exists()))
    write_text(tmp_path / "a", "new")
    assert seen == [False] and (tmp_path / "a").read_text() == "new"


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_for_tensors(*_: Any, **__: Any) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_a_full_disk_is_named_and_what_was_there_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "a", "old")
    write_tensors(tmp_path / "t", {"x": torch.zeros(1)})
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for write in (lambda: write_text(tmp_path / "a", "new"), lambda: write_json(tmp_path / "b", 1)):
            with pytest.raises(DiskFull, match=r"no room on the disk for .* run the same command again"):
                write()
    monkeypatch.setattr("safetensors.torch.save_file", full_for_tensors)
    with pytest.raises(DiskFull, match="no room on the disk"):
        write_tensors(tmp_path / "t", {"x": torch.ones(1)})
    assert names(tmp_path) == ["a", "t"] and (tmp_path / "a").read_text() == "old"
    assert read_tensors(tmp_path / "t")["x"].item() == 0


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    with pytest.raises(RunConflict, match=r"file/new\.json cannot be written \(.*\); give another --out"):
        write_json(tmp_path / "file" / "new.json", {})
    with pytest.raises(RunConflict, match=r"folder cannot be written \(Is a directory\)"):
        write_json(tmp_path / "folder", {})
    for path in (tmp_path / "file" / "new.json", tmp_path / "folder"):
        with pytest.raises(RunConflict, match="cannot be written"):
            check_writable(path)
    check_writable(tmp_path / "file")
    with pytest.raises(RunConflict, match="file/new cannot be written"), replacing_folder(tmp_path / "file" / "new"):
        pass
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "new.json"):
        (tmp_path / "absent").read_text()  # what is read is not what is written
    assert names(tmp_path) == ["file", "folder"] and (tmp_path / "file").read_text() == "old"


def test_other_errors_of_the_system_keep_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: int) -> None:
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="broken disk"):
        write_text(tmp_path / "a", "x")


def test_names_depend_on_values_alone() -> None:
    assert (
        digest("a", {"x": 1, "y": 2.5})
        == digest("a", {"y": 2.5, "x": 1})
        == hashlib.sha256(b'["a", {"x": 1, "y": 2.5}]').hexdigest()[:16]
    )
    assert len({digest("a", 1), digest("a", 2), digest("a", "1"), digest("a1"), digest()}) == 5


def open_run(folder: Path, **config: Any) -> Run:
    return Run.open(folder, {"budget": "a", "parent": "p", "seed": 0} | config, may_change=("budget",))


def finish(run: Run) -> None:
    run.stage("first", "k", lambda folder: write_text(folder / "x", "1"))


def test_a_run_may_be_entered_again_with_what_may_change(tmp_path: Path) -> None:
    finish(open_run(tmp_path / "run"))
    open_run(tmp_path / "run", budget="b")
    assert read_config(tmp_path / "run")["budget"] == "b"


def test_another_configuration_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    finish(open_run(tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(RunConflict, match=r"parent was 'p', now 'q'; seed was 0, now 1.*another --out"):
        open_run(tmp_path, parent="q", seed=1, budget="c")
    with pytest.raises(RunConflict, match="extra was None, now 3"):
        open_run(tmp_path, extra=3)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_of_groups_of_settings_only_what_differs_is_told(tmp_path: Path) -> None:
    finish(open_run(tmp_path, train={"epochs": 1, "inner": {"lr": 0.1}}))
    with pytest.raises(RunConflict, match=r"\(train.epochs was 1, now 8; train.inner.lr was 0.1, now None\)"):
        open_run(tmp_path, train={"epochs": 8, "inner": {}})
    with pytest.raises(RunConflict, match="holds a run of another kind; give another --out"):
        open_run(tmp_path, verb="search")


def test_a_run_is_held_by_one_process_and_freed_with_it(tmp_path: Path) -> None:
    with alone(tmp_path / "run"):
        with (
            pytest.raises(RunConflict, match=r"another process is at work on .*run; wait for its end"),
            alone(tmp_path / "run"),
        ):
            pass
        write_text(tmp_path / "run" / "kept", "x")
    with alone(tmp_path / "run"), alone(tmp_path / "other"):
        pass
    assert names(tmp_path) == ["run"]  # nothing was written into the other
    with alone(tmp_path / "run" / "kept"), alone(tmp_path / "run" / "kept" / "below"):
        pass  # a place that cannot be written is told by who writes


def test_a_run_without_a_finished_stage_may_be_replaced(tmp_path: Path) -> None:
    run = open_run(tmp_path)

    def killed(_: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.stage("first", "k", killed)
    assert open_run(tmp_path, parent="q").folder == tmp_path


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(RunConflict, match="holds no befit run"):
        open_run(tmp_path)
    with pytest.raises(RunConflict, match="is a file"):
        open_run(tmp_path / "letter.txt")
    with pytest.raises(RunConflict, match="no run directory"):
        read_config(tmp_path)
    for text, match in (("{", "damaged"), ("[]", "no run's configuration")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(RunConflict, match=match):
            open_run(tmp_path)
    assert names(tmp_path) == ["config.json", "letter.txt"]


def test_a_stage_is_made_once_for_each_key(tmp_path: Path) -> None:
    run, made = open_run(tmp_path), list[str]()

    def make(folder: Path) -> None:
        made.append(folder.name)
        write_text(folder / "x", "1")

    places = [run.stage("score", key, make) for key in ("k", "k", "l")]
    assert made == ["score-k", "score-l"] and places[0] == places[1] != places[2]
    again = open_run(tmp_path)
    again.stage("score", "k", make)
    assert made == ["score-k", "score-l"]
    assert [stage.reused for stage in run.stages] == [False, True, False]
    assert again.stages[0].reused and again.stages[0].seconds == run.stages[0].seconds
    assert json.loads((places[0] / "done.json").read_text()) == {"seconds": run.stages[0].seconds}


def test_a_stage_that_failed_is_made_again_and_finds_its_files(tmp_path: Path) -> None:
    run, found = open_run(tmp_path), list[bool]()

    def make(folder: Path) -> None:
        found.append((folder / "part").exists())
        write_text(folder / "part", "1")
        if len(found) == 1:
            raise rundir.DiskFull("no room")

    with pytest.raises(DiskFull):
        run.stage("library", "k", make)
    run.stage("library", "k", make)
    assert found == [False, True] and [stage.reused for stage in run.stages] == [False]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    with replacing_folder(tmp_path / "child") as folder:
        (folder / "a").write_text("first")

    def fill() -> None:
        with replacing_folder(tmp_path / "child") as folder:
            (folder / "a").write_text("second")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DiskFull, match="child"):
        fill()
    assert (tmp_path / "child" / "a").read_text() == "first"
    with replacing_folder(tmp_path / "child") as folder:
        (folder / "b").write_text("third")
    assert names(tmp_path) == ["child"] and names(tmp_path / "child") == ["b"]
