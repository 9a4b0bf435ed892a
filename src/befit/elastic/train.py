"""Training a nested model: every budget's member is distilled from the parent, and a router learns which member to take.

The weights' step slices: a member runs on views of the one set of weights (`befit.lm.prefix`), so a small budget costs
proportionally less, and what is outside its prefix gets no gradient. There is no mask at any width.

The router's step cannot slice: its gradient is what the loss would be if a wider choice were taken, and a slice knows nothing
of what it left out. So that step alone runs the whole width with gates of 0 and 1 (`befit.elastic.router.gates`), with
weights that are held still, on one micro-batch, once in `router_every` steps: a forward and about half a backward of the
whole network. Because the gates are hard, it sees networks that exist, unlike the mixtures of Nemotron Elastic's soft masks.

While the router explores, members are drawn from it and moved to their budget; that trains the neighbours of its choice, too.
Then it settles: the last share of the tokens trains the members that `Nested.member` gives, which are those that will be cut.

Killed at any moment, the same call with the same folder goes on from the last checkpoint and ends with the same weights and
router: all that is random is a function of seed and step. Under `accelerate launch`, each process trains on its rows of every
micro-batch, and all agree on the members.

Source: Nemotron Elastic (arXiv 2511.16664); sandwich and in-place distillation from arXiv 1903.05134.
Shapes: N sequences, B batch, T tokens, D hidden, V vocabulary.
"""

import copy
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam

from befit.arch.member import Member, cut_shape
from befit.elastic.budgets import fit
from befit.elastic.curriculum import ElasticTraining, systematic
from befit.elastic.nested import Nested
from befit.elastic.record import Chosen, Log, Record, Routed, Trained, trained_from
from befit.elastic.router import cost_of, gates, noise
from befit.errors import BadData
from befit.lm.distill import head_kl
from befit.lm.leaves import Leaves
from befit.lm.network import Gates, Network, head, hidden_states
from befit.lm.precision import mixed
from befit.lm.prefix import prefix
from befit.lm.training import (
    Checkpoint,
    Learner,
    adam,
    batch_rows,
    checksum,
    claim,
    learning_rate,
    sampled_checksum,
)
from befit.progress import Progress, silent
from befit.rundir import digest, read_json, read_tensors, write_json, write_tensors

OTHERS = "the training of another nested model, from another teacher, on other text or with another configuration"
"""What a folder holds that is not this training's."""
FLUSH = 10
"""Steps after which losses are looked at: divergence is noticed, TensorBoard fed."""
HISTORY = 20
"""How often, about, the router's choices are written down."""

Predictor = tuple[Tensor, Tensor]
"""The last hidden states (B, T, D) and the output projection (V, D): the logits, not multiplied out."""


def train(
    nested: Nested,
    teacher: Mapping[str, Tensor],
    blocks: Sequence[Tensor],
    config: ElasticTraining,
    folder: Path,
    progress: Progress = silent,
) -> Trained:
    """Train all of `nested.targets` to answer like the parent; at the end its weights, router and gains are the trained ones.

    `teacher` are the parent's weights, whose function is `nested.net`'s; they are not touched. `blocks` are token ids (N, T),
    one tensor for each stage, T as the stage says. Shares in `nested.chosen` keep their member from the start; if that is
    every budget below the whole, the router is left as it is. The nested weights keep their number format and device; they are
    replaced by new tensors in `nested.weights`. `folder` receives the checkpoints and TensorBoard's logs, then
    `trained.safetensors` and `trained.json`; called again with the same arguments, it only loads these.

    Raises `BadData` for text that is not long enough, `Infeasible` for a budget below the smallest member, `RunConflict` if the
    folder belongs to another training, `DiskFull` if a checkpoint cannot be written (the one before stays), `BefitError` if
    the loss is no longer a number.
    """
    _check_data(blocks, config)
    claim(folder, _key(nested, teacher, blocks, config), OTHERS)
    written = folder / "trained.json"
    if not written.exists():
        _Training(nested, teacher, blocks, config, folder).run(progress)
    state = read_tensors(folder / "trained.safetensors")
    for name, weight in nested.weights.items():
        nested.weights[name] = state[f"weight {name}"].to(weight.device, weight.dtype)
    nested.router.load_state_dict({name: state[f"router {name}"] for name in nested.router.state_dict()})
    if nested.gains is not None:
        nested.gains.load_state_dict({name: state[f"gains {name}"] for name in nested.gains.state_dict()})
    return trained_from(read_json(written))


def predict(
    net: Network,
    weights: Mapping[str, Tensor],
    member: Member,
    tokens: Tensor,
    *,
    recompute: bool = False,
    run: Callable[..., Tensor] = hidden_states,
    leaves: Leaves | None = None,
) -> Predictor:
    """A member's forward on views of the weights (in training, leaves) for tokens (B, T); `run` may be compiled."""
    cut = replace(net, shape=cut_shape(net.shape, member))
    own = prefix(weights, net.shape, net.family, member) if leaves is None else leaves(weights, member)
    return run(cut, own, tokens, recompute=recompute), head(cut, own)


class _Training:
    """One attempt: fp32 copies of all that is trained, their optimizers, and the files that outlive the attempt."""

    def __init__(
        self,
        nested: Nested,
        teacher: Mapping[str, Tensor],
        blocks: Sequence[Tensor],
        config: ElasticTraining,
        folder: Path,
    ) -> None:
        from accelerate import Accelerator

        # Alone, training stays where the weights are; in a team every process has a device of its own.
        self.accelerator = Accelerator(device_placement=False)
        team = self.accelerator.num_processes
        config.check(team)
        own = next(iter(nested.weights.values())).device
        self.device = self.accelerator.device if team > 1 else own
        self.config, self.blocks = config, blocks
        self.teacher = {name: weight.to(self.device) for name, weight in teacher.items()}
        weights = {
            name: weight.detach().to(self.device, torch.float32, copy=True).requires_grad_()
            for name, weight in nested.weights.items()
        }
        rotary = None if nested.net.rotary is None else copy.deepcopy(nested.net.rotary).to(self.device)
        # The router stays on the CPU: it is tiny, and so all processes draw the same members.
        self.nested = replace(
            nested,
            net=replace(nested.net, rotary=rotary),
            router=copy.deepcopy(nested.router).requires_grad_(),
            gains=None if nested.gains is None else copy.deepcopy(nested.gains).to(self.device).requires_grad_(),
            weights=weights,
        )
        gains = {} if self.nested.gains is None else {"gains": self.nested.gains.values}
        learned = weights | gains
        self.weights = Learner(
            learned, adam(learned, lr=config.lr, weight_decay=config.weight_decay, undecayed={"gains"})
        )
        self.leaves = Leaves(weights, nested.net.shape, nested.net.family)
        routing = dict(self.nested.router.named_parameters())
        self.router = Learner(routing, Adam(routing.values(), lr=config.router_lr))
        self.record = Record()
        self.checkpoint, self.folder = Checkpoint(folder / "checkpoint"), folder
        self.states = _compiled() if config.compile and self.device.type == "cuda" else hidden_states

    def run(self, progress: Progress) -> None:
        """Train from the last checkpoint to the end and write what remains of it."""
        begin, steps, main = self._resume(), self.config.steps, self.accelerator.is_main_process
        log = Log(self.folder / "logs" if main and self.config.tensorboard else None, begin, self.record)
        saved = start = time.monotonic()
        already = self.record.seconds
        for step in (progress if main else silent)(range(begin, steps), "train", steps - begin):
            self._note_members(step)
            self._step(step)
            now = time.monotonic()
            self.record.seconds = already + now - start
            due = step + 1 < steps and now - saved >= self.config.checkpoint_seconds
            if due or (step + 1) % FLUSH == 0:
                self.record.flush(self.config)
                log.write()
            if main and due:
                self.checkpoint.write(self._state())
                saved = time.monotonic()
        self._note_members(steps)
        self.record.flush(self.config)
        log.close()
        if main:
            trained = {f"weight {name}": weight for name, weight in self.nested.weights.items()}
            modules = {"router": self.nested.router} | ({"gains": self.nested.gains} if self.nested.gains else {})
            trained |= {
                f"{own} {n}": tensor for own, module in modules.items() for n, tensor in module.state_dict().items()
            }
            write_tensors(self.folder / "trained.safetensors", trained)
            told = {"steps": steps, "tokens": self.config.tokens, **self.record.to_json()}
            write_json(self.folder / "trained.json", told)
            self.checkpoint.remove()
        self.accelerator.wait_for_everyone()

    def _step(self, step: int) -> None:
        """One step of the weights and, when it is its turn, one of the router."""
        config, (current, inside) = self.config, self.config.place(step)
        stage, draw = config.stages[current], noise(config.seed, step)
        rows = batch_rows(inside, stage.batch, len(self.blocks[current]), config.seed)
        size = stage.batch // config.micro_batches
        parts = [self._tokens(current, rows[i : i + size]) for i in range(0, stage.batch, size)]
        weights = stage.for_budgets(len(self.shares))
        if config.mode == "sampled":
            offset = torch.rand((), generator=draw).item()
            drawn = [[place] for place in systematic(weights, len(parts), offset)]
        else:
            drawn = [draw_sandwich(weights, config.between, draw)] * len(parts)
        found = list[tuple[float, Tensor]]()
        first = self._answer(parts[0])
        for number, (tokens, places) in enumerate(zip(parts, drawn, strict=True)):
            target = self._answer(tokens) if number else first
            found += self._distil(step, tokens, target, [self.shares[place] for place in places], draw)
        rate = learning_rate(step, config.steps, peak=config.lr, warmup=config.warmup)
        self.weights.step(lr=rate, clip=config.clip, average=self._average)
        kl: Any = self.accelerator.reduce(torch.stack([kl for _, kl in found]), "mean")
        self.record.add(step, [share for share, _ in found], kl)
        if self._routes(step):
            self._route(step, parts[0], first, draw)

    def _distil(
        self, step: int, tokens: Tensor, target: Predictor, shares: Sequence[float], draw: torch.Generator
    ) -> list[tuple[float, Tensor]]:
        """Gather the gradient of some budgets on one micro-batch; their KL.

        The first learns from `target`, the parent's, the others from the first.
        """
        config, found = self.config, list[tuple[float, Tensor]]()
        parts = config.micro_batches * len(shares)
        for share in shares:
            member = self._member(step, share, draw)
            with self._mixed():
                answer = self._predict(share, member, tokens, settled=step >= config.settled_at)
                loss = head_kl(target, answer, temperature=config.temperature)
            (loss / parts).backward()
            if share == shares[0] and len(shares) > 1:
                target = answer[0].detach(), answer[1].detach()
            found.append((share, loss.detach()))
        return found

    def _mixed(self) -> AbstractContextManager[Any]:
        """Mixed precision; not on a CPU with layers computed again, which there would happen outside this context."""
        return nullcontext() if self.config.recompute and self.device.type == "cpu" else mixed(self.device)

    def _answer(self, tokens: Tensor) -> Predictor:
        """The parent's, which all members learn from."""
        net = self.nested.net
        with torch.no_grad(), self._mixed():
            return self.states(net, self.teacher, tokens), head(net, self.teacher)

    def _predict(self, share: float, member: Member, tokens: Tensor, *, settled: bool) -> Predictor:
        weights = self.nested.weights
        if self.nested.gains is not None:
            weights = self.nested.gains.apply(weights, share)
        run = self.states if settled else hidden_states
        net, recompute = self.nested.net, self.config.recompute
        return predict(net, weights, member, tokens, recompute=recompute, run=run, leaves=self.leaves)

    def _member(self, step: int, share: float, draw: torch.Generator) -> Member:
        """What a budget trains: the member that will be cut, or while the router explores, one near its choice."""
        if step >= self.config.settled_at or share >= 1 or share in self.nested.chosen:
            return self.nested.member(share)
        with torch.no_grad():
            temperature = self.config.router_temperature(step)
            sample = self.nested.router.sample(share, temperature=temperature, generator=draw)
        return fit(self.nested.space, sample.choice, self.nested.cost, self.nested.limit(share))

    def _routes(self, step: int) -> bool:
        every = self.config.router_every
        return bool(self.routed) and every > 0 and step % every == every - 1 and step < self.config.settled_at

    def _route(self, step: int, tokens: Tensor, target: Predictor, draw: torch.Generator) -> None:
        """One step of the router, for one of its budgets; see the module."""
        nested, config = self.nested, self.config
        share = self.routed[int(torch.randint(len(self.routed), (), generator=draw))]
        sample = nested.router.sample(share, temperature=config.router_temperature(step), generator=draw)
        cost = cost_of(nested.space, sample, nested.cost) / nested.limit(share)
        with torch.no_grad():
            weights = nested.weights if nested.gains is None else nested.gains.apply(nested.weights, share)
            weights = {name: weight.detach() for name, weight in weights.items()}
        with self._mixed():
            open_ = _moved(gates(nested.space, sample), self.device)
            hidden = hidden_states(nested.net, weights, tokens, gates=open_, recompute=config.recompute)
            kl = head_kl(target, (hidden, head(nested.net, weights)), temperature=config.temperature)
        (kl.cpu() + config.budget_weight * (cost - 1).abs()).backward()
        self.router.step(lr=config.router_lr, average=self._average)
        whole: Any = self.accelerator.reduce(kl.detach(), "mean")
        self.record.routed.append(Routed(step=step, share=share, kl=float(whole), cost=float(cost.detach())))

    @property
    def shares(self) -> list[float]:
        """Of all budgets, largest first."""
        return sorted((target.share for target in self.nested.targets), reverse=True)

    @property
    def routed(self) -> list[float]:
        """The budgets whose member the router chooses."""
        return [share for share in self.shares if share < 1 and share not in self.nested.chosen]

    def _tokens(self, stage: int, rows: list[int]) -> Tensor:
        """This process's rows of a micro-batch (B, T)."""
        mine = rows[self.accelerator.process_index :: self.accelerator.num_processes]
        return self.blocks[stage][mine].to(self.device)

    def _average(self, gradient: Tensor) -> None:
        """Over the processes of a team, in place."""
        if self.accelerator.num_processes > 1:
            here = gradient.to(self.device)
            torch.distributed.all_reduce(here)
            gradient.copy_(here / self.accelerator.num_processes)

    def _note_members(self, step: int) -> None:
        """Write down every budget's member before a step, now and then and when it is settled."""
        settled = self.config.settled_at
        if step == settled or (step < settled and step % max(1, self.config.steps // HISTORY) == 0):
            self.record.flush(self.config)
            self.record.history += [Chosen(step=step, share=s, member=self.nested.member(s)) for s in self.shares]

    def _state(self) -> dict[str, Tensor]:
        """All that the next attempt needs."""
        state = {"record": torch.frombuffer(bytearray(json.dumps(self.record.to_json()).encode()), dtype=torch.uint8)}
        state |= {f"nested {name}": tensor for name, tensor in self.weights.state().items()}
        if self.record.routed:
            state |= {f"router {name}": tensor for name, tensor in self.router.state().items()}
        return state

    def _resume(self) -> int:
        """The number of the first step to take: that of the checkpoint, if there is one that can be read."""
        if self.accelerator.is_main_process:
            self.checkpoint.sweep()
        state = self.checkpoint.read()
        if state is None:
            return 0
        self.record.resume(json.loads(bytes(state["record"].tolist())))
        step = self.record.losses[-1].step + 1
        self.weights.restore(_under("nested ", state), step)
        if self.record.routed:
            self.router.restore(_under("router ", state), len(self.record.routed))
        return step


def _compiled() -> Callable[..., Tensor]:
    """`hidden_states`, compiled anew for every member and length of context."""
    compiled = torch.compile(hidden_states, dynamic=False)

    def states(*args: Any, **options: Any) -> Tensor:
        with torch._dynamo.config.patch(recompile_limit=64):  # by default the ninth member would not be compiled
            return compiled(*args, **options)

    return states


def draw_sandwich(weights: Sequence[float], between: int, draw: torch.Generator) -> list[int]:
    """The largest budget, the smallest, and `between` different others drawn by their weights."""
    inner = torch.tensor(weights[1:-1])
    count = min(between, int((inner > 0).sum()))
    others = (1 + inner.multinomial(count, generator=draw)).sort().values.tolist() if count else []
    return list(dict.fromkeys([0, *others, len(weights) - 1]))


def _moved(found: Gates, device: torch.device) -> Gates:
    own = {field.name: getattr(found, field.name) for field in fields(found)}
    return Gates(**{name: None if gate is None else gate.to(device) for name, gate in own.items()})


def _under(start: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(start): tensor for name, tensor in state.items() if name.startswith(start)}


def _check_data(blocks: Sequence[Tensor], config: ElasticTraining) -> None:
    if len(blocks) != len(config.stages):
        raise ValueError(f"elastic: {len(config.stages)} stages need as many tensors of token ids, got {len(blocks)}")
    for number, (rows, stage) in enumerate(zip(blocks, config.stages, strict=True)):
        if rows.ndim != 2 or len(rows) == 0 or rows.shape[1] != stage.sequence:
            raise BadData(
                f"stage {number} needs token ids (N, {stage.sequence}), at least one sequence, got {tuple(rows.shape)}; "
                "give more text, or shorter sequences"
            )


def _key(nested: Nested, teacher: Mapping[str, Tensor], blocks: Sequence[Tensor], config: ElasticTraining) -> str:
    """A name for everything that the result depends on; of the weights, a sample."""
    told = asdict(config)
    for name in ("checkpoint_seconds", "tensorboard"):
        del told[name]
    tensors = (nested.weights, teacher, nested.router.state_dict(), nested.gains.state_dict() if nested.gains else {})
    return digest(
        told,
        asdict(nested.net.shape),
        nested.space.to_json(),
        [asdict(target) for target in nested.targets],
        asdict(nested.workload),
        {str(share): member.to_json() for share, member in nested.chosen.items()},
        [sampled_checksum(own.items()) for own in tensors],
        [[list(rows.shape), checksum(rows)] for rows in blocks],
    )
