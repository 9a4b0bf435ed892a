"""The parent's recipe: it learns, it can be repeated, and what it saves is an ordinary checkpoint."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from befit.errors import BefitError
from befit.lm import pretrain as recipe
from befit.lm.corpus import load_corpus
from befit.lm.pretrain import (
    PretrainConfig,
    embedded,
    embedded_hybrid,
    evaluate,
    learning_rate,
    pretrain,
    tiny,
    train,
)
from befit.lm.shapes import HybridShape, ModelShape, build


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrain(tiny(tmp_path_factory.mktemp("parent")))


def test_the_loss_falls_and_the_record_says_so(saved: Path) -> None:
    record = json.loads((saved / "training.json").read_text())
    losses = record["trained"]["losses"]
    assert losses[0] > 6.1 and losses[-1] < losses[0] - 0.7  # an untrained model is at ln 512 = 6.24
    assert record["trained"]["steps"] == 20 and record["trained"]["tokens"] == 20 * 16 * 64
    assert record["held_out_loss_per_token"] < losses[0] - 0.7
    assert 0.2 < record["held_out_loss_per_byte"] / record["held_out_loss_per_token"] < 1
    assert set(record["packages"]) == {"python"} and not record["trained"]["interrupted"]


def test_the_checkpoint_is_plain_and_its_loss_is_the_recorded_one(saved: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved)
    tokenizer = AutoTokenizer.from_pretrained(saved)
    assert type(model).__name__ == "LlamaForCausalLM" and model.dtype == torch.bfloat16
    rows = load_corpus(tiny(saved).corpus).held_out
    with torch.no_grad():
        loss = float(model(input_ids=rows, labels=rows).loss)
    recorded = json.loads((saved / "training.json").read_text())["held_out_loss_per_token"]
    assert loss == pytest.approx(recorded, rel=1e-3)
    ids = tokenizer("Return the", return_tensors="pt")
    assert model.generate(**ids, max_new_tokens=4, min_new_tokens=4).shape[1] == ids["input_ids"].shape[1] + 4  # type: ignore[attr-defined]


def test_the_embedded_parent_has_the_documented_size(tmp_path: Path) -> None:
    config = embedded(tmp_path)
    model = build(config.model, config.corpus.vocab)
    assert model.num_parameters() == 3_837_120
    assert model.config.head_dim == 24 and model.config.tie_word_embeddings
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_hybrid_learns_and_its_checkpoint_is_plain_too(tmp_path: Path) -> None:
    shape = HybridShape(pattern="M-*M-", hidden=48, heads=4, kv_heads=2, head_dim=12, ffn=96, mamba_heads=4, state=8)
    out = pretrain(replace(tiny(tmp_path), hybrid=shape))
    record = json.loads((out / "training.json").read_text())
    assert record["trained"]["losses"][-1] < record["trained"]["losses"][0] - 0.7
    model = AutoModelForCausalLM.from_pretrained(out)
    assert type(model).__name__ == "NemotronHForCausalLM" and model.dtype == torch.bfloat16
    rows = load_corpus(tiny(out).corpus).held_out
    with torch.no_grad():  # the class's own scan agrees with the one that trained
        loss = float(model(input_ids=rows, labels=rows).loss)
    assert loss == pytest.approx(record["held_out_loss_per_token"], rel=3e-3)


def test_the_embedded_hybrid_has_the_documented_size(tmp_path: Path) -> None:
    config = embedded_hybrid(tmp_path)
    assert config.hybrid is not None
    assert build(config.hybrid, config.corpus.vocab).num_parameters() == 3_570_120
    with pytest.raises(ValueError, match="mamba_heads by groups"):
        HybridShape(mamba_heads=9)


def test_same_seed_same_weights(tmp_path: Path) -> None:
    config = replace(tiny(tmp_path), steps=3)
    rows = torch.arange(64 * 40).remainder(500).view(40, 64)
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        model = build(config.model, 512)
        train(model, rows, replace(config, seed=seed))  # type: ignore[arg-type]
        weights.append(torch.cat([w.detach().flatten() for w in model.parameters()]))
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_training_is_adamw_with_clipped_gradients(tmp_path: Path) -> None:
    config = replace(tiny(tmp_path), steps=4, batch=8)
    rows = torch.randint(0, 512, (8, 64))  # one batch is all rows, so their order does not matter
    model, plain = build(config.model, 512), build(config.model, 512)
    plain.load_state_dict(model.state_dict())
    train(model, rows, config)  # type: ignore[arg-type]
    matrices = [w for w in plain.parameters() if w.ndim == 2]
    norms = [w for w in plain.parameters() if w.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": config.weight_decay}, {"params": norms, "weight_decay": 0}],
        betas=(0.9, 0.95),
    )
    for step in range(4):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step / 4, config)
        optimizer.zero_grad()
        plain(input_ids=rows, labels=rows).loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
    for trained, expected in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(trained, expected, atol=2e-4)


def test_every_row_is_seen_once_in_a_pass(tmp_path: Path) -> None:
    config = replace(tiny(tmp_path), batch=4)
    rows = torch.arange(12).view(12, 1)
    batches = recipe._batches(rows, config)
    first, second = ([int(i) for _ in range(3) for i in next(batches).flatten()] for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(12)) and first != second
    assert first != [int(i) for i in torch.cat([*islice(recipe._batches(rows, replace(config, seed=1)), 3)])]


def test_control_c_saves_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, loss_of = [], recipe._loss

    def interrupted_at_the_third(model: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        def loss(rows: torch.Tensor) -> torch.Tensor:
            calls.append(rows)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return loss_of(model)(rows)

        return loss

    monkeypatch.setattr(recipe, "_loss", interrupted_at_the_third)
    out = pretrain(tiny(tmp_path / "parent"))
    record = json.loads((out / "training.json").read_text())
    assert record["trained"]["interrupted"] and record["trained"]["steps"] == 2
    assert AutoModelForCausalLM.from_pretrained(out).num_parameters() == record["parameters"]


def test_the_clock_ends_a_run_without_steps(tmp_path: Path) -> None:
    config = replace(tiny(tmp_path), steps=None, minutes=0.005)
    model = build(config.model, 512)
    trained = train(model, torch.randint(0, 512, (32, 64)), config)  # type: ignore[arg-type]
    assert trained.steps >= 1 and trained.tokens == trained.steps * 16 * 64


def test_the_learning_rate_rises_then_follows_a_cosine(tmp_path: Path) -> None:
    config = replace(embedded(tmp_path), warmup=0.1, peak_lr=1.0, final_lr=0.1)
    assert learning_rate(0.05, config) == pytest.approx(0.5)
    assert learning_rate(0.1, config) == pytest.approx(1.0)
    assert learning_rate(0.55, config) == pytest.approx(0.55)
    assert learning_rate(1.0, config) == pytest.approx(0.1)


def test_evaluation_is_the_mean_over_all_rows(tmp_path: Path) -> None:
    model = build(tiny(tmp_path).model, 512)
    rows = torch.randint(0, 512, (7, 16))
    expected = sum(float(model(input_ids=row[None], labels=row[None]).loss.detach()) for row in rows) / 7
    assert evaluate(model, rows, batch=3) == pytest.approx(expected, rel=1e-5)  # type: ignore[arg-type]
    assert expected == pytest.approx(math.log(512), rel=0.05)


def test_impossible_configurations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="heads by kv_heads"):
        ModelShape(heads=8, kv_heads=3)
    with pytest.raises(ValueError, match="must be positive"):
        PretrainConfig(out=tmp_path, batch=0)
    if not torch.cuda.is_available():
        with pytest.raises(BefitError, match="no CUDA device"):
            pretrain(replace(tiny(tmp_path), device="cuda"))


@pytest.mark.parametrize(
    ("folder", "last"), [("parent", "the last training batches are at"), ("hybrid", "its last batches at")]
)
def test_the_page_on_the_parents_has_the_recorded_numbers(folder: str, last: str) -> None:
    root = Path(__file__).parents[2]
    page = (root / "docs" / "parent.md").read_text()
    record = json.loads((root / f"src/befit/assets/{folder}/training.json").read_text())
    trained = record["trained"]
    facts = [
        f"{record['parameters']:,}",
        f"{record['train_tokens']:,} tokens of {len(record['packages'])} packages",
        f"about {trained['tokens'] / record['train_tokens']:.0f} times",
        f"{trained['tokens']:,} tokens, {trained['steps']:,} steps, {trained['seconds']:.0f} s on one {record['device']}",
        f"{record['held_out_loss_per_token']:.3f} nats per token, {record['held_out_loss_per_byte']:.3f} nats per byte",
        f"over {record['held_out_tokens']:,} tokens",
        f"{last} {sum(trained['losses'][-50:]) / 50:.2f}",
        f"a peak rate of {record['settings']['peak_lr']}",
        f"{record['settings']['batch']} rows a step",
    ]
    if sizes := record["settings"].get("hybrid"):
        counts = {kind: sizes["pattern"].count(kind) for kind in "M-*"}
        facts += [
            f"{sum(counts.values())}, in the order `{sizes['pattern']}`: {counts['M']} Mamba-2 (`M`), {counts['-']} FFN",
            f"{counts['*']} attention (`*`)",
            f"{sizes['mamba_heads']} heads of {sizes['mamba_head_dim']} channels in {sizes['groups']} SSM groups, "
            f"a state of {sizes['state']}",
            f"{sizes['heads']} query heads and {sizes['kv_heads']} KV heads of {sizes['head_dim']} channels",
            f"{sizes['ffn']} neurons, squared ReLU",
            f"{sizes['hidden']}, the same 3,072 tokens",
        ]
    assert [fact for fact in facts if fact not in page] == []


def test_the_embedded_parent_is_what_the_recipe_makes() -> None:
    folder = Path(recipe.__file__).parents[1] / "assets" / "parent"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert AutoTokenizer.from_pretrained(folder).vocab_size == 3072
    ours = build(ModelShape(), 3072)
    assert {n: w.shape for n, w in model.named_parameters()} == {n: w.shape for n, w in ours.named_parameters()}
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 8 * 2**20
