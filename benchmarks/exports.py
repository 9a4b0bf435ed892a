"""Whether exported files say what the checkpoint says: llama.cpp and the served form against transformers.

    python benchmarks/exports.py --json benchmarks/results/exports.json

A child of the embedded parent with KV heads 4, 2, 1 and none and FFNs of different widths, cut from the parent's weights without
training; and cuts of both embedded parents at 60 % of their parameters. Prompts are text that ships with Python. Weights and
cache of llama.cpp are in fp32, so that what differs is its arithmetic; then the smaller formats are compared. llama.cpp holds
back halves of characters, so the greedy tokens are taken from those that are printable, on both sides.
"""

import argparse
import importlib.metadata
import json
import platform
import pydoc_data.topics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1]))
import llama_cpp
from befit.arch.decoder import Attention, Block, DecoderArch, Ffn, NoOp
from befit.cost.workload import Workload
from befit.elastic.budgets import Target, price_of
from befit.elastic.cut import cut
from befit.elastic.nested import Nested, write_nested
from befit.elastic.router import Router
from befit.elastic.space import default_space
from befit.export.gguf import export_gguf
from befit.export.vllm import export_vllm
from befit.lm.child import build, config_for, save
from befit.lm.families import family_of
from befit.lm.network import network_of
from befit.lm.parent import EMBEDDED, HYBRID, read_config
from befit.lm.slice import initial

PROMPT, TOKENS = 64, 48
HEADS = (4, 2, None, 1, 4, None, 2, 4)
WIDTHS = (512, 256, 512, 256, None, 384, 128, 512)


def plain(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def child(out: Path) -> Any:
    """The embedded parent with other sub-blocks, each with the first weights that `befit puzzle` would give it."""
    parent, config = plain(EMBEDDED), read_config(EMBEDDED)
    family, state = family_of(config), parent.state_dict()
    shape = family.describe(config)
    halves = [
        (NoOp() if heads is None else Attention(kv_heads=heads), NoOp() if width is None else Ffn(width=width))
        for heads, width in zip(HEADS, WIDTHS, strict=True)
    ]
    arch = DecoderArch(blocks=tuple(Block(attention=mixer, ffn=ffn) for mixer, ffn in halves))
    model = build(config_for(config, arch), device="cpu")
    own = {name: tensor for name, tensor in state.items() if ".layers." not in name}
    for i, (mixer, ffn) in enumerate(halves):
        start = f"model.layers.{i}."
        layer = {name.removeprefix(start): tensor for name, tensor in state.items() if name.startswith(start)}
        parts = initial(layer, mixer, "attention", shape, family) | initial(layer, ffn, "ffn", shape, family)
        own |= {start + name: tensor for name, tensor in parts.items()}
    model.load_state_dict(own, strict=False)
    save(model, out, AutoTokenizer.from_pretrained(EMBEDDED))
    return model


def elastic_cut(source: Path, out: Path) -> Any:
    """60 % of a parent's parameters, by a router that was not trained."""
    config, model = read_config(source), plain(source)
    net = network_of(config, family_of(config))
    space = default_space(net.shape, (net.shape.layers - 2, net.shape.layers - 1))
    price, shares = price_of(net.shape, "params", Workload()), (1.0, 0.6)
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    if net.shape.tied:
        del weights["lm_head.weight"]
    nested = Nested(
        net=net,
        config=config,
        space=space,
        targets=tuple(Target(cost="params", share=s, limit=s * price(space.whole)) for s in shares),
        workload=Workload(weights="fp32", cache="fp32"),
        router=Router(space, shares),
        gains=None,
        weights=weights,
    )
    with tempfile.TemporaryDirectory() as folder:
        write_nested(Path(folder) / "nested", nested, AutoTokenizer.from_pretrained(source))
        cut(Path(folder), out, budget="60%", dtype="fp32")
    return plain(out)


def prompts(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    texts = [pydoc_data.topics.topics[name] for name in ("assert", "class", "lambda", "with")]
    return [tokenizer(text)["input_ids"][:PROMPT] for text in texts]


def compare(file: Path, model: Any, given: list[list[int]], banned: list[int]) -> dict[str, float]:
    """Over all prompts and steps: equal greedy tokens, the largest difference of log-probabilities, the mean KL."""
    equal, furthest, divergence = 0, 0.0, 0.0
    for prompt in given:
        tokens, logs = llama_cpp.greedy(file, prompt, TOKENS, model.config.vocab_size, banned)
        same, truth = llama_cpp.expected(model, prompt, tokens, banned)
        equal += sum(a == b for a, b in zip(tokens, same, strict=True))
        furthest = max(furthest, (logs - truth).abs().max().item())
        divergence += (truth.exp() * (truth - logs)).sum(-1).mean().item() / len(given)
    return {"tokens": len(given) * TOKENS, "equal": equal, "max_log_prob_difference": furthest, "kl": divergence}


def case(name: str, folder: Path, model: Any, out: Path) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    banned = [i for i, piece in enumerate(pieces) if i == 0 or not set(piece) <= {*map(chr, range(33, 127)), "Ġ", "Ċ"}]
    given, told = prompts(tokenizer), {}
    for dtype in ("fp32", "fp16", "bf16", "q8_0"):
        made = export_gguf(folder, out / f"{dtype}.gguf", dtype=dtype)
        told[dtype] = compare(made.path, model, given, banned) | {"bytes": made.size_bytes}
        print(name, made.architecture, dtype, told[dtype], flush=True)
    served = export_vllm(folder, out / "served")
    read = AutoModelForCausalLM.from_pretrained(served.folder, dtype=torch.float32, trust_remote_code=True).eval()
    with torch.no_grad():
        difference = (read(torch.tensor(given)).logits - model(torch.tensor(given)).logits).abs().max().item()
    return {
        "name": name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "gguf_architecture": made.architecture,
        "gguf": told,
        "served_form": served.form,
        "served_form_logits_difference_in_transformers": difference,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        made = {
            "heterogeneous child of the embedded dense parent": (child, root / "child"),
            "cut of the embedded dense parent": (lambda out: elastic_cut(EMBEDDED, out), root / "dense"),
            "cut of the embedded hybrid parent": (lambda out: elastic_cut(HYBRID, out), root / "hybrid"),
        }
        for name, (make, place) in made.items():
            out = root / f"{place.name}-files"
            out.mkdir()
            cases.append(case(name, place, make(place), out))
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "gguf", "xllamacpp")}
    told = {"machine": platform.machine(), "versions": versions, "prompt": PROMPT, "kv_heads": HEADS, "widths": WIDTHS}
    told |= {
        "commit": subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(told | {"cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
