"""What one run works on: parent, text, device, space, and the names of what it keeps."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from befit.arch.decoder import DecoderShape
from befit.arch.decoder_space import DecoderSpace
from befit.budget import Budget
from befit.cost.device import Device, this_device
from befit.cost.workload import Workload
from befit.errors import IllegalArch
from befit.lm.data import Blocks, load_blocks, stamp
from befit.lm.data import digest as tensor_digest
from befit.lm.families import family_of
from befit.lm.parent import Parent, find, load_parent, read_config
from befit.lm.precision import DTYPES
from befit.lm.team import Team
from befit.progress import Progress
from befit.puzzle.batches import batches_of, fitted, with_room
from befit.puzzle.config import PuzzleConfig
from befit.puzzle.score import load_task
from befit.puzzle.task_score import check_task
from befit.rundir import Run, digest, read_tensors, write_tensors
from befit.serve.engine import Setting
from befit.serve.measured import check_generates
from befit.serve.table import measured_on

REDONE = ("parent_in", "budget", "baselines", "solutions", "polish", "heal", "rounds", "batches", "out")
"""Settings that may change in an existing run directory, because no finished stage depends on them alone."""


def chosen_dtype(config: PuzzleConfig, device: Device) -> str:
    """The number format to compute in."""
    if config.dtype != "auto":
        return config.dtype
    return "bf16" if device.kind == "cuda" else "fp32"


def workload_of(config: PuzzleConfig, dtype: str) -> Workload:
    """The workload that was asked for; formats that were not named are those computed in."""
    return Workload.parse(config.workload, base=Workload(batch=8, weights=dtype, cache=dtype))


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a configuration asks for, after everything that can be refused before anything is written."""

    space: DecoderSpace
    """All legal children."""
    workload: Workload
    """What relative bounds mean: as asked, or with the largest batch that the parent has room for."""
    batches: tuple[int, ...]
    """Batch sizes to price: one, or several when throughput is bounded."""


def check(config: PuzzleConfig, budget: Budget, workload: Workload) -> Asked:
    """What is asked for, from the parent's configuration alone; nothing is written.

    Raises `UnsupportedModel`, `IllegalArch` for an unknown variant, `BadData` for a task that cannot be found or imported,
    `Infeasible` for bounds on counted costs.
    """
    plain = read_config(find(config.parent, weights=False))
    space = space_of(config, family_of(plain).describe(plain), workload)
    if config.score.function is not None:
        load_task(config.score.function)
    if config.score.task is not None:
        check_task(config.score.task)
    base = fitted(workload, budget, space.shape)
    batches = with_room(space, budget, base, batches_of(workload, base, budget, config.batches))
    return Asked(space=space, workload=base, batches=batches)


def text_stage(run: Run, team: Team, config: PuzzleConfig, parent: Parent) -> Blocks:
    """Text to distil on, and held-out text to score and to judge on, as token ids; tokenised once.

    Raises `BadData` for text that cannot be read or is too short.
    """
    wanted = {
        "length": config.sequence,
        "train_rows": -(-max(config.rank_tokens, config.local_tokens, config.heal.tokens) // config.sequence),
        "held_out_rows": 2 * config.score_sequences,
        "seed": config.seed,
    }

    def make(folder: Path) -> None:
        blocks = load_blocks(config.data, parent.tokenizer, **wanted)
        write_tensors(folder / "text.safetensors", {"train": blocks.train, "held_out": blocks.held_out})

    key = digest("text", config.data and str(Path(config.data).resolve()), stamp(config.data), parent.digest, wanted)
    named = read_tensors(team.stage(run, "text", key, make) / "text.safetensors")
    return Blocks(train=named["train"], held_out=named["held_out"])


def space_of(config: PuzzleConfig, shape: DecoderShape, workload: Workload) -> DecoderSpace:
    """All children that the configuration allows.

    Raises `IllegalArch` for a variant that cannot be read, and for a window that the scored sequences are too short to
    feel: its score would be 0 however much it costs at the workload's context.
    """
    attention, ffn = (
        tuple(filter(None, (name.strip() for name in text.split(",")))) for text in (config.attention, config.ffn)
    )
    window = config.window or max(1, min(workload.context // 4, config.sequence // 2))
    asked = [
        window if name == "window" else int(name[7:]) for name in attention if name == "window" or name[7:].isdigit()
    ]
    if any(w >= config.sequence for w in asked):
        raise IllegalArch(
            f"a window of {max(asked)} tokens cannot be scored on sequences of {config.sequence}; "
            "give a smaller window or a longer --sequence"
        )
    target = "vllm" if config.engine == "vllm" else config.target
    return DecoderSpace(shape=shape, target=target, attention=attention, ffn=ffn, window=window)


@dataclass(kw_only=True)
class Job:
    """What all stages of one run share."""

    config: PuzzleConfig
    team: Team
    run: Run
    progress: Progress
    parent: Parent
    device: Device
    dtype: str
    workload: Workload
    """What relative bounds mean; see `Asked`."""
    batches: tuple[int, ...]
    """Batch sizes to price: one, or several when throughput is bounded."""
    budget: Budget
    blocks: Blocks

    @staticmethod
    def open(config: PuzzleConfig, team: Team, progress: Progress) -> "Job":
        """Check everything that can be checked before any work, then load parent and text."""
        with team.first():
            budget = Budget.parse(config.budget)
            device = this_device(config.device)
            dtype = chosen_dtype(config, device)
            workload = workload_of(config, dtype)
            if config.engine == "vllm":
                device = measured_on(device, Setting())
                check_generates(workload)
            asked = check(config, budget, workload)
            run = Run(folder=config.out)
            if team.main:
                run = Run.open(config.out, config.to_json(), may_change=REDONE)
        parent = load_parent(
            config.parent, device=device.kind, dtype=DTYPES[dtype], streamed=config.parent_in == "disk"
        )
        blocks = text_stage(run, team, config, parent)
        job = Job(
            config=config,
            team=team,
            run=run,
            progress=progress,
            parent=parent,
            device=device,
            dtype=dtype,
            workload=asked.workload,
            batches=asked.batches,
            budget=budget,
            blocks=blocks,
        )
        return job

    @cached_property
    def space(self) -> DecoderSpace:
        """All legal children."""
        return space_of(self.config, self.parent.shape, self.workload)

    def stage(self, name: str, key: str, make: Callable[[Path], None]) -> Path:
        """The folder of a stage that the main process makes alone."""
        return self.team.stage(self.run, name, key, make)

    def rows(self, tokens: int) -> Tensor:
        """The first `tokens` training tokens, whole sequences."""
        return self.blocks.train[: max(1, tokens // self.config.sequence)]

    @property
    def score_rows(self) -> Tensor:
        """Held-out sequences that choose the child."""
        return self.blocks.held_out[: self.config.score_sequences]

    @property
    def final_rows(self) -> Tensor:
        """Held-out sequences that only judge it."""
        return self.blocks.held_out[self.config.score_sequences :]

    @cached_property
    def sorted_key(self) -> str:
        """Names the sorted parent."""
        rows = tensor_digest(self.rows(self.config.rank_tokens))
        return digest("rank", self.parent.digest, rows, self.dtype, self.device.kind)

    @cached_property
    def library_key(self) -> str:
        """Names the library."""
        names = [
            [[v.name for v in self.space.attention_variants(i)], [v.name for v in self.space.ffn_variants(i)]]
            for i in range(self.space.shape.layers)
        ]
        local, rows = self.config.local, tensor_digest(self.rows(self.config.local_tokens))
        return digest("library", self.sorted_key, names, repr(local), rows)
