"""Answers written by an enemy: each is refused by name, and nothing outside is read."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from befit.errors import REASONS, TrialFailed
from befit.propose.sandbox.answers import ARRAYS, Expected, accuracy, read_answer, read_arrays, read_plain

LOGITS = {"logits": Expected(shape=(3, 2))}
GOOD = np.zeros((3, 2), dtype="float32")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"ok": true}',
        '{"ok": true, "value": [1]}',
        '{"ok": true, "value": {"loss": NaN}}',
        '{"ok": true, "value": {}, "score": 1}',
        '{"ok": 1, "value": {}, "reason": "x"}',
        '{"ok": false, "reason": "luck", "message": "x"}',
        '{"ok": false, "reason": "nan", "message": 3}',
        "[" * 200_000,
        '{"ok": true, "value": {"n": ' + "9" * 5000 + "}}",
        '"' + "x" * (1 << 20) + '"',
        "\x00\udcff".encode("utf-8", "surrogateescape").decode("latin-1"),
    ],
)
def test_an_answer_of_another_form_is_no_answer(text: str, tmp_path: Path) -> None:
    (tmp_path / "answer.json").write_text(text)
    with pytest.raises(TrialFailed, match=r"left an? ") as caught:
        read_answer(tmp_path / "answer.json")
    assert caught.value.reason == "output"


def test_answers_and_failures_of_the_documented_form(tmp_path: Path) -> None:
    place = tmp_path / "answer.json"
    place.write_text('{"ok": true, "value": {"params": 7}}')
    assert read_answer(place) == {"params": 7}
    place.write_text(json.dumps({"ok": False, "reason": "invalid", "message": "m" * 5000}))
    with pytest.raises(TrialFailed, match="mmm") as caught:
        read_answer(place)
    assert caught.value.reason == "invalid"
    assert len(str(caught.value)) <= 1000
    assert "output" in REASONS


def test_links_pipes_and_devices_are_not_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text('{"ok": true, "value": {"secret": 1}}')
    for make in (
        lambda place: place.symlink_to(secret),
        lambda place: place.hardlink_to(secret),
        os.mkfifo,
        lambda place: place.mkdir(),
    ):
        place = tmp_path / "answer.json"
        make(place)
        with pytest.raises(TrialFailed) as caught:
            read_answer(place)
        assert caught.value.reason == "output"
        place.rmdir() if place.is_dir() and not place.is_symlink() else place.unlink()
    with pytest.raises(TrialFailed, match="left no readable answer"):
        read_answer(tmp_path / "answer.json")


def test_size_is_bounded_before_reading(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)  # a sparse file: it takes no room, reading it would take all memory
    with pytest.raises(TrialFailed, match="at most 100 are read"):
        read_plain(tmp_path / "large", 100)


@pytest.mark.parametrize(
    ("arrays", "reason", "message"),
    [
        ({"logits": GOOD.T.copy()}, "output", r"shape \(2, 3\), expected float32 of shape \(3, 2\)"),
        ({"logits": GOOD.astype("float64")}, "output", "float64"),
        ({"logits": np.full((3, 2), np.nan, "float32")}, "nan", "not finite"),
        ({"logits": np.full((3, 2), np.inf, "float32")}, "nan", "not finite"),
        ({"other": GOOD}, "output", r"\['other'\] instead of \['logits'\]"),
        ({"logits": GOOD, "labels": GOOD}, "output", "instead of"),
        ({"logits": np.zeros((30_000, 2), "float32")}, "output", "at most"),
    ],
)
def test_other_arrays_are_refused(arrays: dict[str, np.ndarray], reason: str, message: str, tmp_path: Path) -> None:
    save_file(arrays, tmp_path / ARRAYS)
    with pytest.raises(TrialFailed, match=message) as caught:
        read_arrays(tmp_path, LOGITS)
    assert caught.value.reason == reason


class _Marks:
    """Leaves a file when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.place,)


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for name in (ARRAYS, "answer.json"):
        (tmp_path / name).write_bytes(pickle.dumps(_Marks(mark)))
    with pytest.raises(TrialFailed, match="cannot be read"):
        read_arrays(tmp_path, LOGITS)
    with pytest.raises(TrialFailed, match="not JSON"):
        read_answer(tmp_path / "answer.json")
    assert not mark.exists()
    pickle.loads((tmp_path / ARRAYS).read_bytes())  # it would have left its mark
    assert mark.exists()


def test_expected_arrays_are_returned(tmp_path: Path) -> None:
    save_file({"logits": GOOD}, tmp_path / ARRAYS)
    np.testing.assert_array_equal(read_arrays(tmp_path, LOGITS)["logits"], GOOD)
    assert read_arrays(tmp_path / "nowhere", {}) == {}
    assert accuracy(np.eye(4)[[0, 1, 2, 2]], np.arange(4)) == 0.75
