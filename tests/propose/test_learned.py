import json
import random
import shutil
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from scipy.stats import binomtest

from befit.arch.space import Choice, Space
from befit.errors import BadData
from befit.propose import decoder
from befit.propose.archive import Scored
from befit.propose.decoder import DecoderConfig, Schedule
from befit.propose.elites import pupils
from befit.propose.grammar import Bounds, draw
from befit.propose.learned import RECORD, Language, LearnConfig, Learned, genomes, networks
from befit.propose.models import Message, Model, Request
from befit.propose.prompt import stripped
from befit.propose.rendering import Style, render

LINES = 3
KINDS = ("conv", "pool", "norm", "skip")


def line_text(rng: random.Random) -> str:
    return "".join(f"{rng.choice(KINDS)}\n" for _ in range(LINES))


def marks(text: str) -> float:
    """Share of lines that say conv: the score."""
    return text.count("conv") / LINES


TOY = Language(name="toy", sample=line_text, plain=lambda text: text, mark="")
CONFIG = LearnConfig(
    decoder=DecoderConfig(hidden=32, layers=1, heads=2, ffn=64, vocab=300, context=32),
    samples=200,
    warmup=Schedule(steps=60, batch=16, lr=2e-2),
    every=24,
    tuning=Schedule(steps=40, batch=16, lr=1e-2),
    elite_weight=8.0,
    replay=0.3,
    explore=0.0,
)


def ask(model: Model, seed: int) -> str:
    made = model.complete(Request(messages=(Message(role="user", content="go"),), seed=seed, max_tokens=24))
    return made.text.strip("`\n") + "\n"


def row(number: int, text: str) -> Scored:
    return Scored(number=number, key=f"{number}", text=text, dataset="d", accuracy=min(1.0, marks(text)))


def sampled(numbers: int, seed: int = 0) -> list[Scored]:
    rng = random.Random(seed)
    return [row(number, line_text(rng)) for number in range(numbers)]


@pytest.fixture(scope="module")
def learned() -> Learned:
    return Learned(CONFIG, TOY, seed=0, device="cpu")


@pytest.fixture(scope="module")
def folder(learned: Learned, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the warm-up and the first generation from rows of the toy grammar."""
    made = tmp_path_factory.mktemp("learn")
    learned.model(24, sampled(24), made)
    return made


def test_generation_by_generation_the_mark_of_the_elites_spreads(learned: Learned, folder: Path) -> None:
    rows, place = list[Scored](), folder.parent / "run"
    shutil.copytree(folder / "warm-up", place / "warm-up")
    for number in range(4 * CONFIG.every):
        rows.append(row(number, ask(learned.model(number, rows, place), number)))
    shares = [
        sum(one.text.count("conv") for one in rows[begin : begin + CONFIG.every])
        for begin in range(0, len(rows), CONFIG.every)
    ]
    draws = LINES * CONFIG.every
    assert binomtest(shares[0], draws, 1 / len(KINDS)).pvalue > 0.01, "the first generation is the grammar's"
    assert binomtest(shares[-1], draws, 1 / len(KINDS), alternative="greater").pvalue < 1e-6
    assert shares[-1] > shares[1]
    names = {learned.model(number, rows, place).name for number in range(0, 96, 6)}
    assert len(names) == 4, "the grammar, and each generation under a name of its own"


def test_what_is_asked_for_is_what_comes(tmp_path: Path, folder: Path) -> None:
    even = replace(CONFIG, elite_weight=1.0, replay=0.0, tuning=Schedule(steps=60, batch=16, lr=1e-2))
    shutil.copytree(folder / "warm-up", tmp_path / "warm-up")
    proposer = Learned(even, TOY, seed=0, device="cpu")
    rows = sampled(60)
    model = proposer.generation(1, rows, tmp_path)
    lowest = min(one.level for one in pupils(rows, share=1.0))  # many scores are equal here

    def share(level: int) -> int:
        model.inner.tokenizer.chat_template = decoder.level_token(level)
        return sum(ask(model, seed).count("conv") for seed in range(20))

    worst, best = share(lowest), share(9)
    assert binomtest(best, 60, 1 / 4, alternative="greater").pvalue < 1e-4
    assert binomtest(worst, 60, 1 / 4, alternative="less").pvalue < 1e-3


def test_a_resumed_run_reads_what_it_has_and_repeats_nothing(
    learned: Learned, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = sampled(24)
    first = learned.model(24, rows, folder)
    expected = [ask(first, seed) for seed in range(3)]
    calls = count()
    monkeypatch.setattr(decoder, "train", lambda *_: next(calls))
    again = Learned(CONFIG, TOY, seed=0, device="cpu")
    later = [*rows[::-1], row(24, "skip\n" * 3), row(31, "conv\n" * 3)]
    model = again.model(40, later, folder)
    assert next(calls) == 0, "nothing was trained"
    assert model.name == first.name and [ask(model, seed) for seed in range(3)] == expected


def test_another_run_makes_the_same_and_another_row_or_seed_another(
    learned: Learned, folder: Path, tmp_path: Path
) -> None:
    rows, first = sampled(24), learned.model(24, sampled(24), folder).name
    shutil.copytree(folder / "warm-up", tmp_path / "warm-up")
    same = Learned(CONFIG, TOY, seed=0, device="cpu")
    assert same.model(25, rows, tmp_path).name == first
    changed = [replace(rows[0], accuracy=0.9), *rows[1:]]
    assert same.model(25, changed, tmp_path).name != first
    before = (tmp_path / "warm-up" / RECORD).read_text()
    short = replace(CONFIG, warmup=Schedule(steps=2, batch=2))
    assert Learned(short, TOY, seed=0, device="cpu").model(25, rows, tmp_path).name != first
    assert (tmp_path / "warm-up" / RECORD).read_text() != before, "another warm-up is made, not read"


def test_a_folder_without_its_record_is_made_again(learned: Learned, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / "generation-1" / RECORD).unlink()
    (tmp_path / "run" / "generation-1" / "model.safetensors").write_bytes(b"half")
    model = Learned(CONFIG, TOY, seed=0, device="cpu").model(24, sampled(24), tmp_path / "run")
    assert model.name == learned.model(24, sampled(24), folder).name
    record = json.loads((tmp_path / "run" / "generation-1" / RECORD).read_text())
    assert (record["rows"], record["generation"]) == (24, 1) and 1 <= record["elites"] < 24


def test_requests_that_differ_in_anything_are_different_draws(learned: Learned, folder: Path) -> None:
    model = learned.model(24, sampled(24), folder)
    one = Request(messages=(Message(role="user", content="go"),), seed=1, max_tokens=24)
    retry = replace(one, messages=(*one.messages, Message(role="user", content="once more")))
    assert model.complete(one).text == model.complete(one).text
    texts = {model.complete(replace(request, seed=seed)).text for request in (one, retry) for seed in range(8)}
    assert len(texts) > 8


def test_the_grammar_explores_and_stands_in_where_nothing_was_scored(tmp_path: Path) -> None:
    proposer = Learned(replace(CONFIG, explore=1.0), TOY, seed=0, device="cpu")
    assert proposer.model(50, sampled(24), tmp_path) is proposer.grammar
    bare = Learned(CONFIG, TOY, seed=0, device="cpu")
    assert bare.model(3, sampled(2), tmp_path) is bare.grammar
    assert bare.model(50, [], tmp_path) is bare.grammar
    assert not any(tmp_path.iterdir()), "nothing was trained"
    some = Learned(replace(CONFIG, explore=0.3), TOY, seed=0, device="cpu")
    some.generation = lambda *_: some  # type: ignore[method-assign, assignment]
    share = sum(some.model(number, sampled(24), tmp_path) is some.grammar for number in range(24, 1024)) / 1000
    assert share == pytest.approx(0.3, abs=0.06)  # four standard deviations
    assert proposer.count("x" * 30) == 10
    drawn = proposer.grammar.complete(Request(messages=(Message(role="user", content="a long prompt"),)))
    assert (drawn.prompt_tokens, drawn.completion_tokens) == (0, 0), "no prompt is read"
    proposer.close()


def test_texts_of_any_style_are_learned_in_one() -> None:
    bounds = Bounds(in_shape=(2, 1, 8, 8), params=20_000)
    language, rng = networks(bounds), random.Random(4)
    for _ in range(20):
        text = language.sample(rng)
        assert language.plain(text) == text and "train_setup" not in text
    assert "train_setup" in networks(bounds, recipe=True).sample(rng)
    assert networks(bounds).name != networks(bounds, recipe=True).name != networks(Bounds()).name
    commented = render(draw(rng, bounds), Style(remarks=0.5, documented=True))
    assert language.plain(commented) == stripped(commented, recipe=False)


def test_genomes_are_texts_too() -> None:
    space = Space({"a": Choice(1, 2), "b": Choice("x", "y", "z")})
    language = genomes(space)
    text = language.sample(random.Random(0))
    assert space.arch(json.loads(text)) and language.plain(json.dumps(json.loads(text))) == text


def test_settings_are_checked() -> None:
    for wrong in ({"every": 0}, {"elite_weight": 0.5}, {"temperature": 0.0}):
        with pytest.raises(BadData, match="at least 1"):
            LearnConfig(**wrong)  # type: ignore[arg-type]
    for wrong in ({"elite": 0.0}, {"replay": 1.0}, {"explore": 2.0}):
        with pytest.raises(BadData, match="explore"):
            LearnConfig(**wrong)  # type: ignore[arg-type]
