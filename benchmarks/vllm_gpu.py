"""vLLM as the measuring device, on a GPU: are predicted speeds and memory of solved children what vLLM then does?

    python benchmarks/vllm_gpu.py --results benchmarks/results/vllm.json --child runs/small/child --served served/

1. Tokens: a heterogeneous child of the embedded parent, exported for vLLM, continues prompts greedily there and in transformers.
   Every token of vLLM's is compared with the one that transformers would choose after the same tokens; where they differ, the
   gap between the two logits is told beside the spacing of bf16 numbers of that size. With FlashAttention 2, and with 3, which
   vLLM before 0.29 plans wrongly on Hopper GPUs where numbers of KV heads differ (`befit.serve.engine.attention_of`).
   `--explain` recomputes on a CPU what that does to the child's first tokens.
2. Speed and memory: for the shape of Llama-3.1-8B with made-up weights, the cost table is fitted to the parent and a few random
   children under two workloads. Then ten children are solved for throughput budgets, with made-up scores (quality plays no part
   here, but real solutions are not random either), and served: predicted against measured.
3. One child for throughput>=2.17x, met as measured: asked for again, with the miss added, if vLLM makes less of it.
4. The parent with FlashAttention 3, and with vLLM's compiler, to say what measuring without them leaves out.

Every answer is written at once: a run that is cut off keeps what it has.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, LlamaConfig

from befit.arch.decoder import Attention, Block, DecoderArch, Ffn, NoOp
from befit.arch.decoder_space import DecoderSpace
from befit.budget import Budget
from befit.cost.device import this_device
from befit.cost.workload import Workload
from befit.errors import Infeasible
from befit.lm.families import family_of
from befit.lm.parent import EMBEDDED
from befit.lm.timing import spread
from befit.puzzle.prices import Prices
from befit.puzzle.solve import Option, Table, solve
from befit.rundir import read_json, write_json
from befit.serve.engine import Answer, Setting, Vllm
from befit.serve.fit import Setup, fit_table
from befit.serve.measured import Measured
from befit.serve.table import measured_on, room_of, serve_arch, smallest, variants_of, whole_run

WORKLOADS = (Workload(batch=64, prompt=1024, generate=256), Workload(batch=32, prompt=2048, generate=128))
"""A conversation and a document. Steps of decode take the GPU longer than vLLM's own work, with children up to some 2x, too."""
BUDGETS = ("1.2x", "1.4x", "1.6x", "1.8x", "2x")
"""Throughput at either workload, relative to the parent."""
WANTED = "2.17x"
"""Throughput of the child that must be met as measured (what Puzzle's Nemotron-51B has over its parent)."""
FIT_RUNS = 12
"""The parent among them; the smallest model, which tells what the engine takes by itself, comes on top."""
TOKEN_SETTINGS = {"tokens": 2, "tokens_flash_attention_3": 3}
"""Entries of the record, and their version of FlashAttention."""
PROMPTS, PROMPT = 16, 48
"""How many there are for the comparison of tokens, and their tokens."""
TILE_ROWS = 192
"""Of queries, all heads of a group together, that FlashAttention 3 takes at a time for heads of up to 64 (causal)."""
ROOT = Path(__file__).parents[1]
BEGIN = time.monotonic()
DEVICE = "cuda"


@dataclass(kw_only=True)
class Bench:
    """One model family on one engine, and the record of it."""

    engine: Vllm
    config: Any
    space: DecoderSpace
    workloads: Sequence[Workload]
    results: Path
    end: float
    record: dict[str, Any] = field(default_factory=dict)
    """What is on disk, of this call and of one that was cut off before it."""
    new: dict[str, list[Any]] = field(default_factory=dict)
    """Lists of this call."""

    def serve(self, arch: DecoderArch, **told: Any) -> tuple[Answer, dict[str, Any]]:
        """Serve an architecture under every workload; the answer, and its entry for the record."""
        layers = [block.name for block in arch.blocks]
        known = [e for name in ("fit", "met", "solved") for e in self.record.get(name, []) if e["layers"] == layers]
        if known:
            answer = again(known[0]["answer"])
        else:
            answer = serve_arch(self.engine, arch, self.space.shape, self.config, self.workloads)
        entry = {"layers": layers, **told, "measured": summary(answer, self.workloads), "answer": answer.to_json()}
        runs = [[round(total) for total in totals] for totals in answer.totals_ms]
        print(
            f"{time.monotonic() - BEGIN:6.0f} s  start {answer.start_s:5.1f} s  ms {runs}",
            entry["measured"],
            flush=True,
        )
        return answer, entry

    def add(self, name: str, entry: Any) -> None:
        """Append to a list of the record, on disk at once."""
        self.new.setdefault(name, []).append(entry)
        self.record[name] = self.new[name] + self.record.get(name, [])[len(self.new[name]) :]
        write_json(self.results, self.record)

    def put(self, name: str, entry: Any) -> None:
        """Set an entry of the record, on disk at once."""
        self.record[name] = entry
        write_json(self.results, self.record)

    def left(self) -> float:
        """Seconds that are left."""
        return self.end - time.monotonic()


def again(told: dict[str, Any]) -> Answer:
    """An answer from the record of an earlier call."""
    return Answer(**{**told, "runs": tuple(Measured(**run) for run in told["runs"])})


def llama_8b() -> Any:
    """The shape of Llama-3.1-8B."""
    config = LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=131_072,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        tie_word_embeddings=False,
    )
    config.architectures = ["LlamaForCausalLM"]
    return config


def summary(answer: Answer, workloads: Sequence[Workload]) -> dict[str, Any]:
    """An answer in the terms of the record."""
    told = [
        {
            "tokens_per_s": round(run.tokens_per_s(workload), 1),
            "first_ms": round(run.first_ms, 2),
            "mean_first_ms": round(run.mean_first_ms, 2),
            "each_token_ms": round(run.each_token_ms(workload), 4),
            "total_ms": round(run.total_ms, 2),
        }
        for run, workload in zip(answer.runs, workloads, strict=True)
    ]
    memory = {"weight_bytes": answer.runs[0].weight_bytes, "kv_tokens": answer.runs[0].kv_tokens}
    return {"workloads": told, **memory, "start_s": round(answer.start_s, 2), "memory_share": answer.memory_share}


def fit(bench: Bench, setting: Setting) -> tuple[list[Prices], Any, Answer]:
    """Serve the parent and random children, and fit a table for each workload."""
    shape, archs, answers = bench.space.shape, [], list[Answer]()
    for arch in [shape.arch, *spread(bench.space, FIT_RUNS - 1, bench.workloads[0]), smallest(bench.space)]:
        answer, entry = bench.serve(arch)
        archs.append(arch)
        answers.append(answer)
        bench.add("fit", entry)
    device = measured_on(this_device(DEVICE), setting)
    prices = []
    for number, workload in enumerate(bench.workloads):
        runs = [whole_run(a, answer, number, workload) for a, answer in zip(archs, answers, strict=True)]
        setup = Setup(device=device, workload=workload, dtype=workload.weights)
        least = runs.pop()
        variants = list(variants_of(bench.space).values())
        table = fit_table(setup, runs, variants, least_decode_ms=least.decode_ms)
        times = {"base": asdict(table.base), "least_decode_ms": table.least_decode_ms} | {
            name: {option: asdict(time) for option, time in getattr(table, name).items()}
            for name in ("attention", "ffn")
        }
        bench.add("tables", {"workload": asdict(workload), **times})
        prices.append(Prices(space=bench.space, workload=workload, latency=table))
    room = room_of(shape, bench.workloads[0], archs[:-1], answers[:-1])
    bench.put("room", asdict(room))
    return prices, room, answers[0]


def leave_one_out(record: dict[str, Any]) -> dict[str, Any]:
    """Each random model predicted by a fit to the others: relative errors, from the record alone.

    The parent and the smallest model are never left out: predictions lie between them.
    """
    config = llama_8b()
    space = DecoderSpace(shape=family_of(config).describe(config), target="vllm")
    names = {block.name: block for layer in range(space.shape.layers) for block in space.blocks(layer)}
    gone = Block(attention=NoOp(), ffn=NoOp())
    told = [
        (DecoderArch(blocks=tuple(names.get(name, gone) for name in entry["layers"])), again(entry["answer"]))
        for entry in record["fit"]
    ]
    whole = [(arch, answer) for arch, answer in told if arch != smallest(space)]
    least = next(answer for arch, answer in told if arch == smallest(space))
    variants, found = list(variants_of(space).values()), dict[str, Any]()
    for number, given in enumerate(record["workloads"]):
        workload = Workload(**given)
        setup = Setup(device=this_device("cpu"), workload=workload, dtype=workload.weights)
        runs = [whole_run(arch, answer, number, workload) for arch, answer in whole]
        engine = whole_run(smallest(space), least, number, workload).decode_ms
        pairs = [
            (
                fit_table(setup, runs[:i] + runs[i + 1 :], variants, least_decode_ms=engine).predict(run.arch),
                run.measured,
            )
            for i, run in enumerate(runs)
            if run.arch != space.shape.arch
        ]
        own = {
            "first_ms": [abs(guess.prefill_ms / true.prefill_ms - 1) for guess, true in pairs],
            "decode_ms": [abs(guess.decode_ms / true.decode_ms - 1) for guess, true in pairs],
            "tokens_per_s": [abs(true.latency_ms(workload) / guess.latency_ms(workload) - 1) for guess, true in pairs],
        }
        found[f"{workload.batch} x ({workload.prompt} + {workload.generate})"] = {
            name: {"median": median(values), "worst": max(values), "predictions": len(values)}
            for name, values in own.items()
        }
    first = Workload(**record["workloads"][0])
    room = room_of(space.shape, first, [arch for arch, _ in whole], [answer for _, answer in whole])
    values = [abs(room.kv_tokens(space.shape, arch, first) / answer.runs[0].kv_tokens - 1) for arch, answer in whole]
    return found | {"kv_tokens": {"median": median(values), "worst": max(values), "predictions": len(values)}}


def made_up_scores(space: DecoderSpace, prices: Prices, seed: int) -> Table:
    """A solver's table with plausible scores: outer layers matter more, what is removed costs more than its share, with noise."""
    rng, layers = random.Random(seed), []
    for layer in range(space.shape.layers):
        own = space.shape.arch.blocks[layer]
        place = 2 * layer / (space.shape.layers - 1) - 1
        weight = {kind: (0.3 + place**2) * math.exp(rng.gauss(0, 0.5)) for kind in ("attention", "ffn")}

        def lost(block: Block, own: Block = own, weight: dict[str, float] = weight) -> float:
            heads = block.attention.kv_heads if isinstance(block.attention, Attention) else 0
            width = block.ffn.width if isinstance(block.ffn, Ffn) else 0
            assert isinstance(own.attention, Attention) and isinstance(own.ffn, Ffn)
            removed = (1 - heads / own.attention.kv_heads) ** 1.5, (1 - width / own.ffn.width) ** 1.5
            return 0.5 * weight["attention"] * removed[0] + weight["ffn"] * removed[1]

        options = [
            Option(name=block.name, score=lost(block) * math.exp(rng.gauss(0, 0.2)), costs=prices.block(block))
            for block in space.blocks(layer)
        ]
        layers.append(tuple(options))
    return Table(layers=tuple(layers), fixed=prices.fixed())


def solved(bench: Bench, prices: Prices, budget: str, seed: int) -> DecoderArch:
    """The best child for a budget on throughput, as predicted."""
    parent = prices.arch(bench.space.shape.arch)
    bounds = prices.bounds(Budget.parse(f"throughput>={budget}").resolve(parent))
    found = solve(made_up_scores(bench.space, prices, seed), bounds)[0]
    return DecoderArch(blocks=tuple(bench.space.blocks(layer)[k] for layer, k in enumerate(found.choice)))


def predicted(bench: Bench, prices: Sequence[Prices], room: Any, arch: DecoderArch) -> dict[str, Any]:
    """What the tables say, in the terms of `summary`."""
    told = []
    for price in prices:
        costs = price.arch(arch)
        told.append({"tokens_per_s": round(costs["tokens_per_s"], 1), "first_ms": round(costs["prefill_ms"], 2)})
    return {
        "workloads": told,
        "weight_bytes": int(prices[0].arch(arch)["weight_bytes"]),
        "kv_tokens": room.kv_tokens(bench.space.shape, arch, bench.workloads[0]),
    }


def errors(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Relative errors of all predictions, by quantity: median, worst, how many."""
    found: dict[str, list[float]] = {}
    for entry in entries:
        guess, true = entry["predicted"], entry["measured"]
        for a, b in zip(guess["workloads"], true["workloads"], strict=True):
            for name in ("tokens_per_s", "first_ms"):
                found.setdefault(name, []).append(abs(a[name] / b[name] - 1))
        for name in ("weight_bytes", "kv_tokens"):
            found.setdefault(name, []).append(abs(guess[name] / true[name] - 1))
    return {name: {"median": median(e), "worst": max(e), "predictions": len(e)} for name, e in found.items()}


def held_out(bench: Bench, prices: Sequence[Prices], room: Any) -> None:
    """Serve ten solved children that were in no fit, half of them solved under each workload."""
    for number, budget in enumerate(BUDGETS):
        for own, price in enumerate(prices):
            if bench.left() < 30:
                return
            try:
                arch = solved(bench, price, budget, seed=10 * number + own)
            except Infeasible as error:
                bench.add("infeasible", {"budget": budget, "solved_at": own, "reason": str(error)})
                continue
            told = {
                "budget": f"throughput>={budget}",
                "solved_at": own,
                "predicted": predicted(bench, prices, room, arch),
            }
            bench.add("solved", bench.serve(arch, **told)[1])
            bench.put("errors", errors(bench.record["solved"]))


def met(bench: Bench, prices: Prices, parent: Answer) -> None:
    """A child whose measured throughput is `WANTED` times the parent's: tightened by the miss, as `befit puzzle` does."""
    wanted, asked = float(WANTED[:-1]), float(WANTED[:-1])
    workload = prices.workload
    for _ in range(3):
        if bench.left() < 30:
            return
        arch = solved(bench, prices, f"{asked}x", seed=100)
        answer, entry = bench.serve(arch, asked=asked)
        speed_up = answer.runs[0].tokens_per_s(workload) / parent.runs[0].tokens_per_s(workload)
        bench.add("met", entry | {"wanted": wanted, "speed_up": round(speed_up, 4), "met": speed_up >= wanted})
        if speed_up >= wanted:
            return
        asked = round(asked * wanted / speed_up / 0.99, 4)


def parent_otherwise(bench: Bench, name: str, setting: Setting, log: Path) -> None:
    """The parent in another setting."""
    if name in bench.record:
        return
    with Vllm(setting, log) as engine:
        answer = serve_arch(engine, bench.space.shape.arch, bench.space.shape, bench.config, bench.workloads)
    bench.put(name, summary(answer, bench.workloads))
    print(f"{time.monotonic() - BEGIN:6.0f} s  {name}", bench.record[name], flush=True)


def token_prompts(child: Path) -> list[list[int]]:
    """Text of this repository, cut into equal pieces."""
    text = AutoTokenizer.from_pretrained(child)((ROOT / "README.md").read_text())["input_ids"]
    return [text[i * PROMPT : (i + 1) * PROMPT] for i in range(PROMPTS)]


def tokens(engine: Vllm, child: Path, served: Path, *, generate: int = 64) -> dict[str, Any]:
    """Greedy tokens of an exported child in vLLM, judged by transformers on the same GPU in the same format."""
    import befit

    model: Any = befit.load(child, dtype=torch.bfloat16).to(DEVICE)
    prompts = token_prompts(child)
    free = model.generate(
        torch.tensor(prompts, device=DEVICE),
        max_new_tokens=generate,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )[:, PROMPT:].tolist()
    work = Workload(batch=PROMPTS, prompt=PROMPT, generate=generate)
    answer = engine(served, [work], dummy=False, prompts=prompts, generate=generate, memory_share=0.05)
    ties = list[dict[str, float]]()
    for number, (prompt, given) in enumerate(zip(prompts, answer.tokens, strict=True)):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([[*prompt, *given]], device=DEVICE)).logits[0, PROMPT - 1 : -1]
        ties += [{"prompt": number, **entry} for entry in differing(logits.float(), given)]
    alike = sum(list(a) == b for a, b in zip(answer.tokens, free, strict=True))
    return {
        "layers": [block.name for block in befit.lm.child.arch_of(model.config).blocks],
        "prompts": PROMPTS,
        "generate": generate,
        "tokens": PROMPTS * generate,
        "same_choice": PROMPTS * generate - len(ties),
        "differing": ties,
        "differing_by_more_than_4_spacings": sum(entry["gap"] > 4 * entry["bf16_spacing"] for entry in ties),
        "prompts_with_equal_continuations": alike,
    }


def differing(logits: torch.Tensor, given: Sequence[int]) -> list[dict[str, float]]:
    """Where logits (tokens, vocabulary) choose another token than the one given: by how much, and bf16's spacing there."""
    found = list[dict[str, float]]()
    for place, (row, token) in enumerate(zip(logits, given, strict=True)):
        best = row.max()
        if int(row.argmax()) != token:
            spacing = 2.0 ** (math.floor(math.log2(max(abs(float(best)), 1e-6))) - 7)
            found.append({"place": place, "gap": float(best - row[token]), "bf16_spacing": spacing})
    return found


def without_last_rows(child: Path) -> dict[str, Any]:
    """First tokens of a child on the CPU if attention is computed only for the rows that the first layer's KV heads make of a
    prompt: rows left out keep what an earlier attention, or nothing, left in memory. The gap to the right token for each prompt.
    """
    import befit

    model: Any = befit.load(child, dtype=torch.bfloat16)
    prompts = torch.tensor(token_prompts(child))
    blocks = befit.lm.child.arch_of(model.config).blocks
    queries = model.config.num_attention_heads
    groups = {i: queries // b.attention.kv_heads for i, b in enumerate(blocks) if isinstance(b.attention, Attention)}
    planned = -(-PROMPT * groups[min(groups)] // TILE_ROWS)
    computed = {i: min(PROMPT, planned * TILE_ROWS // group) for i, group in groups.items()}
    left = dict[int, torch.Tensor]()

    def first_tokens(stale: int | None, *, whole: bool = False) -> torch.Tensor:
        """Logits after the prompt; `stale` is the layer whose output lies in the rows left out, None for zeros."""

        def of(layer: int) -> Any:
            def replaced(_: Any, given: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
                heads = given[0].clone()
                if whole:
                    left[layer] = heads
                else:
                    heads[:, computed[layer] :] = 0 if stale is None else left[stale][:, computed[layer] :]
                return (heads,)

            return replaced

        hooks = [model.model.layers[i].self_attn.o_proj.register_forward_pre_hook(of(i)) for i in groups]
        with torch.inference_mode():
            logits = model(input_ids=prompts).logits[:, -1].float()
        for hook in hooks:
            hook.remove()
        return logits

    right = first_tokens(None, whole=True)
    stale: list[int | None] = [None, *list(groups)[:-1]]
    gaps = {
        "zeros" if layer is None else f"layer {layer}": [
            round(float(row.max() - row[int(wrong.argmax())]), 4)
            for row, wrong in zip(right, first_tokens(layer), strict=True)
        ]
        for layer in stale
    }
    return {"rows_computed": {str(i): rows for i, rows in computed.items()}, "prompt": PROMPT, "gaps": gaps}


def smoke(engine: Vllm) -> None:
    """A small heterogeneous model, and the large parent: does everything start, and how fast?"""
    small = AutoConfig.from_pretrained(EMBEDDED)
    for config in (small, small, llama_8b()):
        shape = family_of(config).describe(config)
        space = DecoderSpace(shape=shape, target="vllm")
        arch = space.sample(random.Random(0)) if config is small else shape.arch
        begin = time.monotonic()
        answer = serve_arch(engine, arch, shape, config, WORKLOADS[:1] if config is small else WORKLOADS)
        print(
            f"{time.monotonic() - begin:.1f} s", json.dumps(summary(answer, WORKLOADS[: len(answer.runs)])), flush=True
        )


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/vllm.json"))
    parser.add_argument("--child", type=Path, help="a heterogeneous child of befit puzzle --target vllm")
    parser.add_argument("--served", type=Path, help="its export: befit export CHILD --to vllm")
    parser.add_argument("--seconds", type=float, default=560.0)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each workload, the fastest of which counts")
    parser.add_argument("--flash-attention", type=int, default=0, help="its version; 0 for the one that befit chooses")
    parser.add_argument("--resume", action="store_true", help="go on with results that were cut off")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--tokens", action="store_true", help="only compare the tokens of --child and --served")
    parser.add_argument(
        "--explain", action="store_true", help="only add to existing results what a CPU says of --child"
    )
    parser.add_argument(
        "--leave-one-out", action="store_true", help="only add to existing results what their fit predicts"
    )
    return parser.parse_args()


def only_tokens(asked: argparse.Namespace, setting: Setting, log: Path) -> None:
    """The comparison of tokens in each setting, added to the results."""
    record = read_json(asked.results) if asked.results.exists() else {}
    for name, version in TOKEN_SETTINGS.items():
        with Vllm(replace(setting, repeats=1, flash_attention=version), log) as engine:
            record[name] = tokens(engine, asked.child, asked.served)
        torch.cuda.empty_cache()
        write_json(asked.results, record)
        print(f"{time.monotonic() - BEGIN:6.0f} s  {name}", json.dumps(record[name]), flush=True)


def main() -> None:
    asked = arguments()
    if asked.leave_one_out or asked.explain:
        record = read_json(asked.results)
        own = (
            {"explained": without_last_rows(asked.child)} if asked.explain else {"leave_one_out": leave_one_out(record)}
        )
        write_json(asked.results, record | own)
        return
    setting = Setting(repeats=asked.repeats, flash_attention=asked.flash_attention)
    log = asked.results.with_suffix(".log")
    if asked.tokens:
        only_tokens(asked, setting, log)
        return
    with Vllm(setting, log) as engine:
        if asked.smoke:
            smoke(engine)
            return
        config = llama_8b()
        bench = Bench(
            engine=engine,
            config=config,
            space=DecoderSpace(shape=family_of(config).describe(config), target="vllm"),
            workloads=WORKLOADS,
            results=asked.results,
            end=BEGIN + asked.seconds,
            record=read_json(asked.results) if asked.results.exists() and asked.resume else {},
        )
        device = asdict(measured_on(this_device(DEVICE), setting))
        bench.put("device", device | {"torch": torch.__version__})
        bench.put("workloads", [asdict(workload) for workload in WORKLOADS])
        bench.put("repeats", setting.repeats)
        prices, room, parent = fit(bench, setting)
        met(bench, prices[0], parent)
        held_out(bench, prices, room)
    if bench.left() > 60:
        parent_otherwise(bench, "parent_flash_attention_3", replace(setting, flash_attention=3), log)
    if bench.left() > 90:
        parent_otherwise(bench, "parent_compiled", replace(setting, compiled=True), log)
    bench.put("seconds", round(time.monotonic() - BEGIN, 1))
    print(json.dumps(bench.record.get("errors"), indent=1))


if __name__ == "__main__":
    main()
