"""Parents read shard by shard: equal to those in memory, a layer at a time, within a bound on memory."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from befit.arch.decoder_space import DecoderSpace
from befit.errors import UnsupportedModel
from befit.lm.child import from_parent
from befit.lm.parent import EMBEDDED, Parent, _weights, load_parent
from befit.lm.rank import Ranking, rank
from befit.lm.shards import Shards, StreamedLayers, whole
from befit.lm.sort import sort
from befit.puzzle.library import Library
from befit.puzzle.local import LocalConfig, build_library


def write(folder: Path, family: str) -> Path:
    """A parent in many shards, with a tokenizer."""
    tiny.original(family).save_pretrained(folder, max_shard_size="10KB")
    assert len(list(folder.glob("*.safetensors"))) > 4
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((EMBEDDED / name).read_bytes())
    return folder


def load(folder: Path, *, streamed: bool, dtype: torch.dtype = torch.float32) -> Parent:
    return load_parent(str(folder), device="cpu", dtype=dtype, streamed=streamed)


def layers_of(parent: Parent) -> StreamedLayers:
    layers = parent.model.model.layers
    assert isinstance(layers, StreamedLayers)
    return layers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", tiny.ALL)
def test_tensors_are_those_that_transformers_reads(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    write(tmp_path, family)
    model = from_parent(_weights(tmp_path, dtype))
    for streamed in (False, True):
        parent = load(tmp_path, streamed=streamed, dtype=dtype)
        whole(parent.model)
        own, other = parent.model.state_dict(), model.state_dict()
        assert own.keys() == other.keys() and all(torch.equal(own[name], other[name]) for name in own)
        assert {t.dtype for t in own.values()} == {t.dtype for t in other.values()}
        assert parent.model.config.to_dict() == model.config.to_dict()
        assert parent.model.generation_config == model.generation_config
        with torch.no_grad():
            torch.testing.assert_close(parent.model(tiny.tokens()).logits, model(tiny.tokens()).logits, rtol=0, atol=0)
        assert not any(weight.requires_grad for weight in parent.model.parameters())


def test_one_layer_at_a_time_has_weights(tmp_path: Path) -> None:
    layers = layers_of(load(write(tmp_path, "llama"), streamed=True))
    for index in (0, 1, 3, 2, -1, 3):
        assert layers[index] is list(layers)[index]
        filled = [i for i, layer in enumerate(layers) if all(w.device.type == "cpu" for w in layer.parameters())]
        assert filled == [index % 4]
        assert all(
            w.device.type == "meta" for i, layer in enumerate(layers) if i not in filled for w in layer.parameters()
        )
    assert layers.reads == 5  # the last was there already


@pytest.mark.parametrize("family", ["llama", "qwen2", tiny.HYBRID])
def test_ranking_and_library_are_the_same_bit_by_bit(family: str, tmp_path: Path) -> None:
    folder, tokens = write(tmp_path / "parent", family), tiny.tokens(8)
    rankings, files, models = list[Ranking](), list[dict[str, torch.Tensor]](), []
    for streamed in (False, True):
        parent = load(folder, streamed=streamed)
        found = rank(parent.model, parent.shape, parent.family, tokens, batch=3)
        sort(parent.model, parent.shape, parent.family, found)
        space = DecoderSpace(shape=parent.shape, attention=("all", "1", "/2", "linear"), ffn=("100", "50"))
        library = Library(parent=parent.model, space=space, family=parent.family, folder=tmp_path / str(streamed))
        build_library(tokens, LocalConfig(batch=2), library=library)
        if streamed:
            assert layers_of(parent).reads == 2 * parent.shape.layers
        whole(parent.model)
        rankings.append(found)
        files.append({k: v for i in range(parent.shape.layers) for k, v in load_file(library.file(i)).items()})
        models.append(parent.model.state_dict())
    pairs = [(rankings[0].tensors(), rankings[1].tensors()), (files[0], files[1]), (models[0], models[1])]
    for here, there in pairs:
        assert here.keys() == there.keys() and all(torch.equal(here[name], there[name]) for name in here)


def test_a_layer_read_before_the_ranking_is_sorted_too(tmp_path: Path) -> None:
    folder = write(tmp_path, "llama")
    early, late = load(folder, streamed=True), load(folder, streamed=False)
    found = rank(late.model, late.shape, late.family, tiny.tokens())
    before = layers_of(early)[0].state_dict()["mlp.up_proj.weight"].clone()
    for parent in (early, late):
        sort(parent.model, parent.shape, parent.family, found)
    after = layers_of(early)[0].state_dict()["mlp.up_proj.weight"]
    assert torch.equal(after, late.model.model.layers[0].state_dict()["mlp.up_proj.weight"])
    assert not torch.equal(after, before)


def test_published_names_of_a_hybrid(tmp_path: Path) -> None:
    folder = write(tmp_path, tiny.HYBRID)
    expected = load(folder, streamed=False).model.state_dict()
    for path in folder.glob("*.safetensors"):
        named = {name.replace("model.", "backbone.", 1): tensor for name, tensor in load_file(path).items()}
        save_file(named, path, metadata={"format": "pt"})
    found = load(folder, streamed=True).model
    whole(found)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.state_dict().items())


def test_what_cannot_be_streamed_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, "llama")
    path = sorted(folder.glob("*.safetensors"))[2]
    tensors = load_file(path)
    name = next(iter(tensors))
    save_file({f"old.{name}": tensors.pop(name), **tensors}, path, metadata={"format": "pt"})
    with pytest.raises(UnsupportedModel, match="cannot be read layer by layer; save the parent anew"):
        load(folder, streamed=True)
    shards = Shards(folder)
    path.write_bytes(b"half a download")
    with pytest.raises(UnsupportedModel, match=f"{path.name} cannot be read"):
        shards.read([f"old.{name}"], "cpu", torch.float32)
    with pytest.raises(UnsupportedModel, match=f"{path.name} cannot be read"):
        Shards(folder)


MEASURE = """
import ctypes, gc, sys
from pathlib import Path
import torch
import tiny
from befit.arch.decoder_space import DecoderSpace
from befit.lm.parent import load_parent
from befit.lm.rank import rank
from befit.lm.sort import sort
from befit.puzzle.library import Library
from befit.puzzle.local import LocalConfig, build_library

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])

torch.set_num_threads(1)
for number, streamed in enumerate((True, True, False)):  # the first loads the code, too
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is from now on
    before = status("VmRSS")
    parent = load_parent(sys.argv[1], device="cpu", dtype=torch.float32, streamed=streamed)
    tokens = tiny.tokens(8)
    sort(parent.model, parent.shape, parent.family, rank(parent.model, parent.shape, parent.family, tokens))
    space = DecoderSpace(shape=parent.shape, attention=("all", "1"), ffn=("100", "50"))
    folder = Path(sys.argv[2]) / str(number)
    library = Library(parent=parent.model, space=space, family=parent.family, folder=folder)
    build_library(tokens, LocalConfig(batch=4), library=library)
    print(status("VmHWM") - before)
    del parent, library, space
"""


def test_memory_stays_at_a_layer_and_its_variants(tmp_path: Path) -> None:
    """Peak resident memory of ranking and library building over 16 layers of 6.7 MB each, from files and in memory."""
    folder = tmp_path / "parent"
    config = {"hidden_size": 256, "intermediate_size": 2048, "num_attention_heads": 4, "head_dim": 32}
    model = tiny.original("llama", 16, num_key_value_heads=2, **config)
    model.save_pretrained(folder, max_shard_size="8MB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((EMBEDDED / name).read_bytes())
    layer = 4 * sum(weight.numel() for weight in model.model.layers[0].parameters())
    assert 6e6 < layer < 8e6
    ran = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder), str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env={"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "262144"},
    )
    assert ran.returncode == 0, ran.stderr
    _, streamed, kept = map(int, ran.stdout.split())
    # The layer, its copy, half an FFN and an attention with their gradients, two moments and first weights, and a file.
    assert streamed < 8 * layer
    assert kept > 16 * layer
