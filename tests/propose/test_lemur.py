import json
import sqlite3
from pathlib import Path
from random import Random

import pytest
from tests.propose.proposals import network, row, run

from befit.errors import BadData
from befit.propose.archive import ArchiveConfig, choose, population
from befit.propose.layout import lemur_md5
from befit.propose.lemur import read_lemur
from befit.propose.lemur_files import write_lemur
from befit.propose.proposal import Proposal


def stat(
    folder: Path,
    name: str,
    rows: list,
    *,
    dataset: str = "cifar-10",
    epoch: int = 1,
    task: str = "img-classification",
    metric: str = "acc",
) -> None:
    place = folder / "stat" / f"{task}_{dataset}_{metric}_{name}"
    place.mkdir(parents=True, exist_ok=True)
    (place / f"{epoch}.json").write_text(json.dumps(rows))


def code(folder: Path, name: str, source: str) -> None:
    (folder / "nn").mkdir(parents=True, exist_ok=True)
    (folder / "nn" / f"{name}.py").write_text(source)


# A row as the collection has it.
PUBLISHED = {
    "accuracy": 0.6, "batch": 4, "dropout": 0.09, "duration": 117059206828, "lr": 0.019, "momentum": 0.86,
    "transform": "echo_64", "uid": "7ee4a5dce6862656aba5fa9d49048de9",
}  # fmt: skip


def test_published_folders_are_read(tmp_path: Path) -> None:
    code(tmp_path, "ga-115", network(8))
    code(tmp_path, "alt_nn_3", network(16))  # a name with underscores
    stat(tmp_path, "ga-115", [PUBLISHED, PUBLISHED | {"accuracy": 0.5}])
    stat(tmp_path, "ga-115", [PUBLISHED | {"accuracy": 0.7}], epoch=5)
    stat(tmp_path, "alt_nn_3", [PUBLISHED | {"accuracy": 0.65}])
    stat(tmp_path, "alt_nn_3", [PUBLISHED], dataset="cifar-100")
    found = read_lemur(tmp_path, datasets=["cifar10"])
    assert [(one.accuracy, one.dataset, one.number) for one in found.networks] == [
        (0.7, "cifar10", -2),
        (0.65, "cifar10", -1),
    ]
    assert [one.note for one in found.networks] == ["LEMUR's ga-115, 5 epochs", "LEMUR's alt_nn_3, 1 epoch"]
    assert found.networks[0].text == network(8)
    assert found.refused == {"repeated": 2, "dataset": 1}
    first = found.statistics[1]
    assert first.prm == {"batch": 4, "dropout": 0.09, "lr": 0.019, "momentum": 0.86}
    assert first.seconds == pytest.approx(117.059206828) and first.transform == "echo_64"
    once = read_lemur(tmp_path, datasets=["cifar10"], epoch=1)
    assert [one.accuracy for one in once.networks] == [0.65, 0.6] and once.refused["epoch"] == 1


def test_what_cannot_be_used_is_counted_by_reason(tmp_path: Path) -> None:
    sources = {
        "good": network(8),
        "renamed": network(8).replace("body", "trunk"),
        "broken": "class Net(:",
        "empty": "x = 1\n",
        "long": network(8) + "#" * 2**20,
    }
    for name, source in sources.items():
        code(tmp_path, name, source)
        stat(tmp_path, name, [PUBLISHED])
    stat(tmp_path, "absent", [PUBLISHED])
    stat(tmp_path, "good", [PUBLISHED | {"accuracy": value} for value in (None, 1.5, float("nan"), "x")], epoch=2)
    stat(tmp_path, "good", [PUBLISHED], task="img-captioning")
    stat(tmp_path, "good", [PUBLISHED], metric="iou")
    found = read_lemur(tmp_path, datasets=["cifar10"])
    assert [one.text for one in found.networks] == [network(8)]
    assert found.refused == {
        "accuracy": 4, "task": 1, "metric": 1, "no-code": 1, "parse": 1, "contract": 1, "size": 1, "repeated": 1,
    }  # fmt: skip


def test_no_file_is_run(tmp_path: Path) -> None:
    code(tmp_path, "evil", f"open({str(tmp_path / 'ran')!r}, 'w')\n" + network(8))
    stat(tmp_path, "evil", [PUBLISHED])
    assert len(read_lemur(tmp_path, datasets=["cifar10"]).networks) == 1 and not (tmp_path / "ran").exists()


SCHEMA = """
CREATE TABLE nn (name TEXT PRIMARY KEY, code TEXT NOT NULL, id TEXT NOT NULL);
CREATE TABLE prm (uid TEXT NOT NULL, name TEXT NOT NULL, value OBJECT NOT NULL);
CREATE TABLE stat (id TEXT PRIMARY KEY, accuracy REAL, epoch INTEGER, duration INTEGER,
                   task TEXT, dataset TEXT, metric TEXT, nn TEXT, transform TEXT, prm TEXT);
"""
"""The three tables as LEMUR makes them, without those that it does not need here."""


def database(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.executescript(SCHEMA)
    for name, width in (("a", 8), ("b", 16)):
        connection.execute("INSERT INTO nn VALUES (?, ?, ?)", (name, network(width), lemur_md5(network(width))))
    connection.executemany("INSERT INTO prm VALUES (?, ?, ?)", [("u", "lr", 0.01), ("u", "batch", 64)])
    line = ("img-classification", "mnist", "acc")
    rows = [("1", 0.9, 1, 10**9, *line, "a", "norm_32", "u"), ("2", 0.95, 1, None, *line, "b", "norm_32", "v")]
    rows += [("3", 0.99, 1, None, "img-classification", "svhn", "acc", "a", "norm_32", "u")]
    connection.executemany(f"INSERT INTO stat VALUES ({', '.join('?' * 10)})", rows)
    connection.commit()
    connection.close()


def test_the_database_is_read(tmp_path: Path) -> None:
    database(tmp_path / "ab.nn.db")
    found = read_lemur(tmp_path, datasets={"digits": "mnist"})
    assert [(one.dataset, one.accuracy, one.text) for one in found.networks] == [
        ("digits", 0.95, network(16)), ("digits", 0.9, network(8)),
    ]  # fmt: skip
    assert found.statistics[1].prm == {"lr": 0.01, "batch": 64} and found.statistics[0].prm == {}
    assert found.statistics[1].seconds == 1.0 and found.refused == {"dataset": 1}
    before = sorted(path.name for path in tmp_path.iterdir())
    assert before == ["ab.nn.db"], "nothing was written beside it"


def test_a_table_of_rows_may_hold_the_code(tmp_path: Path) -> None:
    rows = [{"nn": "a", "dataset": "MNIST", "accuracy": 0.9, "epoch": 2, "nn_code": network(8), "prm": {"lr": 0.1}}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    found = read_lemur(tmp_path, datasets=["mnist"])
    assert found.networks[0].text == network(8) and found.statistics[0].prm == {"lr": 0.1}


@pytest.mark.parametrize("form", ["folders", "table"])
def test_what_is_written_is_read_again(form: str, tmp_path: Path) -> None:
    rows = [one for seed in range(2) for one in run("", "my_data", seed, 30, skill=0.9)]
    folder = tmp_path / "out"
    written = write_lemur(rows, folder, epochs=8, prm={"lr": 0.05, "batch": 64})
    trained = [one for one in rows if one.stage in ("trained", "above-chance")]
    assert written.rows == len(trained) and written.left_out == len(rows) - len(trained)
    assert written.networks == len({one.source for one in trained}) == len(list((folder / "nn").iterdir()))
    for path in (folder / "nn").iterdir():
        assert path.stem == f"befit-{lemur_md5(path.read_text())}"
    for path in (folder / "stat").rglob("*") if form == "table" else ():
        if path.is_file():
            path.unlink()
    found = read_lemur(folder, datasets=["my_data"], epoch=8)
    best = dict[str, float]()
    for one in trained:
        best[one.source] = max(best.get(one.source, 0.0), one.accuracy or 0.0)
    assert {one.text: one.accuracy for one in found.networks} == best
    assert {one.dataset for one in found.networks} == {"my_data"}
    assert all(one.prm == {"lr": 0.05, "batch": 64} and one.epoch == 8 for one in found.statistics)
    seconds = {one.source: one.train_seconds for one in trained}
    assert found.statistics[0].seconds in (pytest.approx(seconds[found.networks[0].text]), None) or len(best) < len(
        trained
    )


def test_an_unsound_md5_loses_no_network(tmp_path: Path) -> None:
    """The same text but for white space, and another program: the last line inside the branch or after it."""
    line = "        if self.training:\n            x = x * 2\n"
    inside = network(8).replace("        return", f"{line}            x = x + 1\n        return")
    after = network(8).replace("        return", f"{line}        x = x + 1\n        return")
    assert lemur_md5(inside) == lemur_md5(after)
    rows = [row(number=0, source=inside, accuracy=0.5), row(number=1, source=after, accuracy=0.6)]
    assert write_lemur(rows, tmp_path / "out", epochs=1).networks == 2
    found = read_lemur(tmp_path / "out", datasets=["digits"])
    assert [one.text for one in found.networks] == [after, inside]


def test_a_file_that_is_not_the_measured_one_is_refused(tmp_path: Path) -> None:
    write_lemur([row(source=network(8)), row(number=1, source=network(16))], tmp_path / "out", epochs=1)
    for path in (tmp_path / "out" / "stat").rglob("*.json"):
        path.unlink()
    (tmp_path / "out" / "nn" / f"befit-{lemur_md5(network(8))}.py").write_text(network(24))
    found = read_lemur(tmp_path / "out", datasets=["digits"])
    assert found.refused == {"md5": 1} and [one.text for one in found.networks] == [network(16)]


def test_networks_known_from_the_start_may_be_chosen_at_once(tmp_path: Path) -> None:
    code(tmp_path, "a", network(8))
    stat(tmp_path, "a", [PUBLISHED])
    given = read_lemur(tmp_path, datasets=["cifar10"]).networks
    assert population(given, 0, 0, ArchiveConfig()) == list(given)
    assert choose(given, 0, Random(0), ArchiveConfig(), dataset="cifar10").parent == given[0]


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="is no folder"):
        read_lemur(tmp_path / "absent", datasets=["x"])
    with pytest.raises(BadData, match="no results in"):
        read_lemur(tmp_path, datasets=["x"])
    stat(tmp_path, "a", [PUBLISHED])
    with pytest.raises(BadData, match="no network with results on x; refused rows by reason: dataset 1"):
        read_lemur(tmp_path, datasets=["x"])
    (tmp_path / "stat" / "img-classification_cifar-10_acc_a" / "1.json").write_text("[")
    with pytest.raises(BadData, match="is no JSON"):
        read_lemur(tmp_path, datasets=["x"])
    (tmp_path / "ab.nn.db").write_text("not a database at all")
    with pytest.raises(BadData, match="cannot be read as LEMUR's database"):
        read_lemur(tmp_path, datasets=["x"])
    with pytest.raises(BadData, match="not empty"):
        write_lemur([row(source=network(8))], tmp_path, epochs=1)
    untrained: list[Proposal] = [row("returned"), row(source="{}")]
    with pytest.raises(BadData, match="no trained network among 2"):
        write_lemur(untrained, tmp_path / "new", epochs=1)
