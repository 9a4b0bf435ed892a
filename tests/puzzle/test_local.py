"""The library: weights before training, what training does to errors it never saw, files, memory, children made from it."""

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests import tiny
from tests.puzzle.conftest import FREE, MakeLibrary, empty_library
from torch import nn

from befit.arch.decoder import Attention, Block, DecoderArch, Ffn, Linear, NoOp
from befit.errors import IllegalArch
from befit.lm import precision
from befit.lm.slice import KINDS, initial
from befit.puzzle import local
from befit.puzzle.library import Library, free, parent_layer
from befit.puzzle.local import LocalConfig, build_library

TRAINED = LocalConfig(epochs=3, batch=4, lr=3e-3, held=0.25)
TOKENS = tiny.tokens(16, 12, seed=2)


def variants(library: Library, layer: int) -> list[tuple[str, Any]]:
    """Those that have weights of their own."""
    return [(kind, v) for kind in KINDS for v in library.variants(layer, kind)[1:] if not isinstance(v, NoOp)]


@torch.no_grad()
def held_out_error(library: Library, layer: int, kind: str, variant: Any, held: int) -> float:
    """The error by its definition, from hidden states of the parent run whole."""
    parent = library.parent
    x = parent(TOKENS[-held:], output_hidden_states=True, use_cache=False).hidden_states[layer]
    context = parent.model.begin(x, windows={5, None})
    own, other = parent.model.layers[layer], library.half(layer, kind, variant)
    middle = own.attend(x, context)  # type: ignore[operator]
    if kind == "attention":
        wanted, got = middle - x, other.attend(x, context) - x
    else:
        wanted, got = own.feed(middle) - middle, other.feed(middle) - middle  # type: ignore[operator]
    return float((got - wanted).square().sum() / wanted.square().sum())


@pytest.mark.parametrize(("family", "layers"), [("llama", 2), ("qwen2", 2), (tiny.HYBRID, 3)])
def test_training_lowers_the_held_out_errors(
    family: str, layers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_cpu_multiplies_bf16", lambda: False)
    library = empty_library(tmp_path, family, layers)
    before = {name: t.clone() for name, t in library.parent.state_dict().items()}
    errors = build_library(TOKENS, TRAINED, library=library)
    assert all(t.equal(before[name]) for name, t in library.parent.state_dict().items())
    for layer in range(layers):
        assert set(errors[layer]) == {f"{kind}/{v.name}" for kind, v in variants(library, layer)}
        assert all(after <= first for first, after in errors[layer].values())
        for kind, variant in variants(library, layer):
            _, after = errors[layer][f"{kind}/{variant.name}"]
            assert held_out_error(library, layer, kind, variant, 4) == pytest.approx(after, rel=1e-4)
    ratios = [after / first for table in errors.values() for first, after in table.values()]
    assert sum(ratio < 0.9 for ratio in ratios) > len(ratios) / 2


def test_what_training_made_worse_keeps_its_first_weights(tmp_path: Path) -> None:
    library = empty_library(tmp_path / "a", layers=1)
    errors = build_library(TOKENS, replace(TRAINED, lr=1e3), library=library)
    first = empty_library(tmp_path / "b", layers=1)
    build_library(TOKENS, FREE, library=first)
    kept = [name for name, (before, after) in errors[0].items() if before == after]
    assert kept
    for name, tensor in load_file(first.file(0)).items():
        if name.rsplit("/", 1)[0] in kept:
            assert tensor.equal(load_file(library.file(0))[name])


@pytest.mark.parametrize("family", tiny.ALL)
def test_without_training_weights_are_cut_from_the_parent(family: str, make_library: MakeLibrary) -> None:
    library = make_library(family, 3)
    for layer in range(3):
        weights = parent_layer(library.parent, layer)
        for kind, variant in variants(library, layer):
            expected = initial(weights, variant, kind, library.space.shape, library.family)
            found = library.tensors(layer, kind, variant)
            assert set(found) == set(expected)
            assert all(found[name].equal(expected[name]) for name in found)


def test_a_layer_may_have_nothing_to_train(tmp_path: Path) -> None:
    full = empty_library(tmp_path, tiny.HYBRID, 3)
    space = replace(full.space, attention=("all", "noop"), ffn=("100", "50"))
    library = Library(parent=full.parent, space=space, family=full.family, folder=tmp_path)
    errors = build_library(TOKENS, TRAINED, library=library)
    assert errors[0] == errors[2] == {} and set(errors[1]) == {"ffn/ffn32"}
    assert library.assemble(replace(space.shape.arch)).config.model_type == tiny.HYBRID


def test_layers_that_are_missing_are_made_again_bit_by_bit(tmp_path: Path) -> None:
    library = empty_library(tmp_path)
    errors = build_library(TOKENS, TRAINED, library=library)
    kept = {path: path.read_bytes() for path in tmp_path.iterdir()}
    stamps = {path: path.stat().st_mtime_ns for path in kept}
    library.file(1).with_suffix(".json").unlink()  # killed between the two files of a layer
    library.file(2).unlink()
    library.file(2).with_suffix(".json").unlink()
    assert build_library(TOKENS, TRAINED, library=library) == errors
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == kept
    assert library.file(0).stat().st_mtime_ns == stamps[library.file(0)]


def test_only_one_layers_variants_are_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, alive, most = local._halves, list["weakref.ref[nn.Module]"](), list[int]()

    def watched(*arguments: Any) -> Any:
        halves = make(*arguments)
        alive.extend(weakref.ref(module) for module in halves.values())
        most.append(sum(ref() is not None for ref in alive))
        return halves

    monkeypatch.setattr(local, "_halves", watched)
    library = empty_library(tmp_path, layers=4)
    build_library(TOKENS, replace(TRAINED, epochs=1), library=library)
    count = len(variants(library, 0))
    # While a layer's variants are made, those before may still be bound to their names: never more than two layers'.
    assert len(most) == 4 and max(most) <= 2 * count and most[3] == most[1]
    assert library.loaded == {}


def test_children_share_tensors_and_copies_do_not(make_library: MakeLibrary) -> None:
    library = make_library()
    own = library.space.shape.arch.blocks
    arch = DecoderArch(
        blocks=(own[0], Block(attention=NoOp(), ffn=Ffn(width=32)), Block(attention=Linear(), ffn=NoOp()))
    )
    child = library.assemble(arch)
    parent = {t.data_ptr() for t in library.parent.parameters()}
    assert {t.data_ptr() for t in child.model.layers[0].parameters()} <= parent
    stored = {t.data_ptr() for tensors in library.loaded.values() for t in tensors.values()}
    assert {t.data_ptr() for t in child.model.layers[1].parameters()} <= stored
    copied = free(child)
    assert not {t.data_ptr() for t in copied.parameters()} & (parent | stored)
    with torch.no_grad():
        assert copied(TOKENS).logits.equal(child(TOKENS).logits)
        assert library.assemble(library.space.shape.arch)(TOKENS).logits.equal(library.parent(TOKENS).logits)


def test_a_child_outside_the_space_is_refused(make_library: MakeLibrary) -> None:
    library = make_library()
    nothing = Block(attention=NoOp(), ffn=NoOp())
    with pytest.raises(IllegalArch, match="at least one"):
        library.assemble(DecoderArch(blocks=(nothing,) * 3))
    strange = Block(attention=Attention(kv_heads=2, window=3), ffn=NoOp())
    with pytest.raises(IllegalArch, match="layer 0"):
        library.assemble(DecoderArch(blocks=(strange,) * 3))


def test_one_sequence_is_too_little_to_train_on_but_enough_for_a_library(tmp_path: Path) -> None:
    library = empty_library(tmp_path, layers=1)
    errors = build_library(TOKENS[:1], TRAINED, library=library)
    assert all(before == after for before, after in errors[0].values())
