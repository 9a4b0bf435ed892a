"""A hybrid of over 30 million parameters, trained on a GPU and made elastic there: tokens a second, and loss for each budget.

    python benchmarks/elastic_gpu.py --tokens tokens/tokens.safetensors --out runs/elastic-gpu

The token file is what `befit parent tokens` writes; its tokenizer lies beside it. The parent is trained by the clock, then
`befit elastic` runs on it with baselines: a nested model of uniform ratios, and the smallest size distilled by itself, each with
the same tokens. With mamba_ssm installed, members run on its scan. Documents are read back from the token file, so that
what was held out from the parent is held out here too.
"""

import argparse
import json
import platform
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from befit.elastic.config import ElasticConfig
from befit.elastic.curriculum import ElasticTraining
from befit.elastic.pipeline import elastic
from befit.elastic.summary import table_rows
from befit.lm import ssd
from befit.lm.corpus import END_ID, CorpusConfig, load_corpus
from befit.lm.pretrain import PretrainConfig, pretrain
from befit.lm.shapes import HybridShape
from befit.progress import Bars
from befit.rundir import replacing

LARGE = HybridShape(
    pattern="M-M-M*-M-M-M*-M-M-",
    hidden=512,
    heads=8,
    kv_heads=4,
    head_dim=64,
    ffn=2048,
    mamba_heads=16,
    mamba_head_dim=64,
    groups=4,
    state=64,
)
SMALL = HybridShape(pattern="M-*M-", hidden=64, heads=4, kv_heads=2, head_dim=16, ffn=128, mamba_heads=4, state=16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/elastic-gpu"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/elastic_gpu.json"))
    parser.add_argument("--minutes", type=float, default=2.5, help="of training the parent")
    parser.add_argument("--batch", type=int, default=128, help="rows of 512 tokens in a step of the parent")
    parser.add_argument("--lr", type=float, default=2e-3, help="of the parent")
    parser.add_argument("--text", type=int, default=8_000_000, help="tokens of text to distil on")
    parser.add_argument("--stages", default="6M@512x128, 3M@1024x64:0.5/0.3/0.2")
    parser.add_argument("--elastic-lr", type=float, default=6e-4)
    parser.add_argument("--small", action="store_true", help="a network and steps for trying this out")
    asked = parser.parse_args()
    begin = time.monotonic()
    corpus = CorpusConfig(tokens=asked.tokens, tokenizer=asked.tokenizer)
    recipe = PretrainConfig(
        out=asked.out / "parent",
        corpus=corpus,
        hybrid=LARGE,
        batch=asked.batch,
        minutes=asked.minutes,
        peak_lr=asked.lr,
    )
    if asked.small:
        recipe = replace(recipe, hybrid=SMALL, steps=3, batch=4, compile=False)
    if not (recipe.out / "training.json").exists():  # the same command goes on where it stopped
        pretrain(recipe)
    trained = json.loads((recipe.out / "training.json").read_text())
    pretraining = {
        "parameters": trained["parameters"],
        "tokens": trained["trained"]["tokens"],
        "seconds": trained["trained"]["seconds"],
        "tokens_per_s": trained["trained"]["tokens"] / trained["trained"]["seconds"],
        "loss": trained["held_out_loss_per_token"],
    }
    print("parent", json.dumps(pretraining), flush=True)
    asked.results.parent.mkdir(parents=True, exist_ok=True)
    asked.results.write_text(json.dumps({"pretraining": pretraining}) + "\n")
    data = asked.out / "text.jsonl"
    if not data.exists():
        write_documents(corpus, data, asked.text)
    config = ElasticConfig(
        parent=str(recipe.out),
        data=str(data),
        out=asked.out / "run",
        budgets="100%, 75%, 50%",
        workload="batch=64,prompt=512,generate=128",
        stages=asked.stages,
        rank_tokens=65_536,
        depth_tokens=16_384,
        train=ElasticTraining(lr=asked.elastic_lr, tensorboard=False, checkpoint_seconds=600),
        baselines=True,
    )
    for step in (replace(config, baselines=False), config):  # what is finished is on disk before the baselines begin
        with Bars() as progress:
            summary = elastic(step, progress=progress)
        note(asked.results, summary, pretraining, begin)
    rows = table_rows(summary)
    print(" | ".join(rows[0]))
    for row in rows:
        print(" | ".join(row.values()))
    for stage in summary["stages"]:
        print(f"{stage['name']:<16}{stage['seconds']:>8.1f} s")
    speed = json.loads(asked.results.read_text())["tokens_per_s"]
    print(f"elastic training {speed:,.0f} tokens/s; parent {pretraining['tokens_per_s']:,.0f} tokens/s")


def note(results: Path, summary: dict[str, Any], pretraining: dict[str, Any], begin: float) -> None:
    """Write the record of the run so far."""
    training = summary["training"]
    told = summary | {
        "pretraining": pretraining,
        "mamba_kernels": ssd.kernels(),
        "tokens_per_s": training["tokens"] / training["seconds"],
        "seconds": time.monotonic() - begin,
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
    }
    results.write_text(json.dumps(told, indent=1) + "\n")
    print(
        f"{told['tokens_per_s']:,.0f} tokens/s",
        {one["budget"]: round(one["kl"], 4) for one in told["members"]},
        flush=True,
    )


def write_documents(config: CorpusConfig, file: Path, tokens: int) -> None:
    """Documents of the token file's train and held-out rows, one JSON object a line; `tokens` of the train rows."""
    corpus = load_corpus(config)
    with replacing(file) as temporary, temporary.open("w") as out:
        for rows in (corpus.train[: tokens // corpus.train.shape[1]], corpus.held_out):
            flat = rows.flatten()
            ends = (flat == END_ID).nonzero().flatten().tolist()
            pieces = [flat[a + 1 : b].tolist() for a, b in pairwise(ends)]
            for text in corpus.tokenizer.batch_decode([piece for piece in pieces if piece]):
                out.write(json.dumps({"text": text}) + "\n")


if __name__ == "__main__":
    main()
