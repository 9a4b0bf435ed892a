"""The harness's numbers through befit's view of a model, against those of the harness's own transformers class."""

import json
import sys
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tests import tiny
from tests.lm.answering import tokenizer

from befit.errors import BadData
from befit.lm import harness as module
from befit.lm.answers import Speaker
from befit.lm.harness import Asked, Harness
from befit.lm.task_data import local_rows
from published import DATA

ARC = [
    {
        "question": f"Which number is {n}?",
        "choices": {"text": [str(n + k) for k in range(3 + n % 2)], "label": list("ABCD")[: 3 + n % 2]},
        "answerKey": "A",
    }
    for n in range(6)
]
PIQA = [{"goal": f"count to {n}", "sol1": "one " * n, "sol2": "two", "label": n % 2} for n in range(1, 6)]
GENERATED = """
task: copied
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}, cache_dir: {cache}}}
output_type: {kind}
test_split: test
doc_to_text: "Say {{{{word}}}}:"
doc_to_target: "{{{{word}}}}"
"""


@pytest.fixture
def models() -> tuple[Speaker, Any]:
    """A tiny model as befit's speaker and as the harness's own class."""
    sizes = {"vocab_size": len(tokenizer()), "eos_token_id": 0}
    speaker = Speaker(model=tiny.parent("llama", 2, **sizes), tokenizer=tokenizer())
    theirs: Any = HFLM
    plain = theirs(pretrained=tiny.original("llama", 2, **sizes), tokenizer=tokenizer(), batch_size=1, max_length=128)
    return speaker, plain


def write(folder: Path) -> Path:
    for name, rows in (("arc_easy", ARC), ("piqa", PIQA)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def theirs(harness: Harness, model: Any) -> dict[str, Any]:
    evaluate: Any = lm_eval.simple_evaluate
    told = evaluate(
        model=model,
        tasks=list(harness.tasks.values()),
        bootstrap_iters=0,
        task_manager=TaskManager(include_defaults=False),
    )
    return told["results"]


def test_multiple_choice_from_local_rows(models: tuple[Speaker, Any], tmp_path: Path) -> None:
    speaker, plain = models
    harness = Harness(Asked(tasks=("arc_easy", "piqa"), data=str(write(tmp_path))))
    found, again, truth = harness.ask(speaker), harness.ask(speaker), theirs(harness, plain)
    assert list(found) == ["arc_easy", "piqa"] and found == again
    for name, count in (("arc_easy", 6), ("piqa", 5)):
        for metric in ("acc", "acc_norm"):
            own = found[name][metric]
            assert len(own.values) == count and own.higher
            assert sum(own.values) / count == pytest.approx(truth[name][f"{metric},none"])
    assert found["arc_easy"]["acc"].chance == pytest.approx((1 / 3 + 1 / 4) / 2) and found["piqa"]["acc"].chance == 0.5
    (limited,) = Harness(Asked(tasks=("piqa",), data=str(tmp_path), limit=2)).ask(speaker).values()
    assert limited["acc"].values == found["piqa"]["acc"].values[:2]


def test_choices_are_the_harness_requests(tmp_path: Path) -> None:
    items = Harness(Asked(tasks=("arc_easy",), data=str(write(tmp_path)))).choices()
    assert [item.prompt for item in items] == [f"Question: Which number is {n}?\nAnswer:" for n in range(6)]
    assert items[1].options == (" 1", " 2", " 3", " 4") and {item.right for item in items} == {0}


@pytest.mark.parametrize("kind", ["generate_until", "loglikelihood_rolling"])
def test_definitions_of_ones_own(kind: str, models: tuple[Speaker, Any], tmp_path: Path) -> None:
    speaker, plain = models
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"word": word}) + "\n" for word in ("river", "old stone")))
    own = tmp_path / "copied.yaml"
    own.write_text(GENERATED.format(rows=tmp_path / "rows.jsonl", cache=tmp_path / "cache", kind=kind))
    if kind == "generate_until":
        with own.open("a") as file:
            file.write("metric_list: [{metric: exact_match}]\ngeneration_kwargs: {until: ['.'], max_gen_toks: 5}\n")
    harness = Harness(Asked(tasks=(str(own),)))
    found = harness.ask(speaker)["copied"]
    (task,) = harness.tasks.values()
    requests = [request for request in task.instances]
    if kind == "generate_until":
        assert found["exact_match"].values == (0.0, 0.0) and found["exact_match"].chance == 0
        assert [request.resps[0] for request in requests] == plain.generate_until(requests)
        with pytest.raises(BadData, match="no options to choose among"):
            harness.choices()
    else:
        assert [request.resps[0] for request in requests] == pytest.approx(
            plain.loglikelihood_rolling(requests), abs=1e-3
        )
        assert found == {}  # perplexity is no mean over items


def test_long_texts_go_through_in_windows(models: tuple[Speaker, Any]) -> None:
    """The harness's own class is the judge of where windows begin."""
    speaker, plain = models
    from lm_eval.api.instance import Instance

    text = "The old river under the green light of seven houses. " * 20
    request: Any = Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=0)
    (truth,) = plain.loglikelihood_rolling([request])
    (own,) = speaker.whole([text])
    assert speaker.room == 128 and own.tokens == len(speaker.encode(text)) > 2 * 128
    assert own.total == pytest.approx(truth, rel=1e-5)


def test_what_cannot_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    # The harness's own tasks take seconds to list; here there are none.
    monkeypatch.setattr(module, "_manager", lambda defaults=False: TaskManager(include_defaults=False))
    for asked, words in (
        (Asked(tasks=("none.yaml",)), "no task definition"),
        (Asked(tasks=("spelling",)), "no task is called"),
        (Asked(tasks=("hellaswag",), data=str(tmp_path)), "--task-data"),
        (Asked(tasks=("piqa",), data=str(tmp_path), shots=2), "piqa.train.jsonl"),
    ):
        with pytest.raises(BadData, match=words):
            Harness(asked)


def test_examples_come_from_rows_of_their_own(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "piqa.train.jsonl").write_text((json.dumps({**PIQA[0], "goal": "learn"}) + "\n") * 2)
    (item, *_) = Harness(Asked(tasks=("piqa",), data=str(tmp_path), shots=1)).choices()
    assert item.prompt.startswith("Question: learn\nAnswer: ") and item.prompt.endswith("Question: count to 1\nAnswer:")


@pytest.mark.data
def test_published_rows_become_the_harness_prompts() -> None:
    items = Harness(Asked(tasks=("arc_challenge",), data=str(DATA), limit=20)).choices()
    rows = local_rows(DATA, "arc_challenge")
    assert rows is not None and len(items) == 20
    for item, row in zip(items, rows.asked, strict=False):
        assert item.prompt == f"Question: {row['question']}\nAnswer:"
        assert item.answer == " " + row["choices"]["text"]["ABCDE".index(row["answerKey"])]


def test_without_the_harness_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lm_eval", "lm_eval.tasks", "datasets"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BadData, match="pip install lm-eval"):
        Harness(Asked(tasks=("arc_easy",)))
