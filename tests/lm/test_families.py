"""Every family keeps every law, and its checkpoints load where befit is not installed."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

pytest.register_assert_rewrite("laws.families")

from transformers import AutoConfig, AutoModelForCausalLM  # noqa: E402

import tiny  # noqa: E402
from befit.arch.decoder import Mamba  # noqa: E402
from befit.errors import UnsupportedModel  # noqa: E402
from befit.lm.child import MODELS, arch_of, load, save  # noqa: E402
from befit.lm.families import family_of  # noqa: E402
from laws.families import CASES, FAMILIES, IDS, LAWS, NOT_FOR, Case, close, logits  # noqa: E402

APPLY = [(law, case) for law in LAWS for case in CASES if law not in NOT_FOR or case.model_type not in NOT_FOR[law][0]]


@pytest.mark.parametrize(("law", "case"), APPLY, ids=lambda value: getattr(value, "name", None) or value.__name__)
def test_law(law: Callable[[Case], None], case: Case) -> None:
    law(case)


def test_only_what_a_family_lacks_is_passed_over() -> None:
    for law, (families, reason) in NOT_FOR.items():
        assert law in LAWS and reason == "no layer is Mamba-2"
        for case in CASES:
            mamba = any(isinstance(block.attention, Mamba) for block in case.shape.arch.blocks)
            assert (case.model_type in families) == (not mamba)


def test_every_supported_family_is_listed() -> None:
    with pytest.raises(UnsupportedModel) as refused:
        family_of(AutoConfig.for_model("gpt2"))
    supported = set(str(refused.value).rpartition(": ")[2].split(", "))
    assert supported == set(FAMILIES) == set(MODELS)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the mixed child of every case."""
    folder = tmp_path_factory.mktemp("children")
    for case in CASES:
        save(case.child(case.mixed()), folder / case.name)
    return folder


ELSEWHERE = """
import sys
from pathlib import Path

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "befit":
            raise ImportError("befit is not installed here")

sys.meta_path.insert(0, Refuse())
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

folder, ids = Path(sys.argv[1]), torch.tensor(eval(sys.argv[2]))
found = {}
for child in sorted(path for path in folder.iterdir() if path.is_dir()):
    model = AutoModelForCausalLM.from_pretrained(child, trust_remote_code=True)
    with torch.no_grad():
        found[child.name] = model(ids).logits
        found[child.name + "/generated"] = model.generate(ids, max_new_tokens=4, do_sample=False)
assert "befit" not in sys.modules
save_file(found, folder / "elsewhere.safetensors")
"""


def test_checkpoints_load_here_and_where_befit_is_not(saved: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-I", "-c", ELSEWHERE, str(saved), str(IDS.tolist())]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    elsewhere = load_file(saved / "elsewhere.safetensors")
    for case in CASES:
        truth = case.child(case.mixed())
        here = load(saved / case.name)
        close(logits(here), logits(truth), atol=0)
        close(elsewhere[case.name], logits(truth), atol=1e-6)
        generated = truth.generate(IDS, max_new_tokens=4, do_sample=False)
        close(elsewhere[f"{case.name}/generated"], generated)
        assert (here.lm_head.weight is here.model.embed_tokens.weight) == case.shape.tied


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_checkpoint_says_what_it_is(case: Case, saved: Path) -> None:
    written = json.loads((saved / case.name / "config.json").read_text())
    layers = written["per_layer_config"]
    if case.family.single:
        assert layers["0"]["skip"] == layers["4"]["skip"] == ["attention", "mlp"]
        assert (
            layers["1"]["intermediate_size"] == 32
            and layers["3"]["mamba_num_heads"] == case.changes["mamba_num_heads"] // 2
        )
        assert layers["5"]["linear"] == ["attention"] and layers["7"]["linear"] == ["mlp"]
        assert written["layers_block_type"] == tiny.kinds("--*M--*-")
    else:
        assert list(layers) == ["0", "1", "2", "3"]
        assert layers["0"]["skip"] == ["attention"] and layers["1"]["skip"] == ["mlp"]
        assert layers["2"]["linear"] == ["mlp"] and layers["3"]["linear"] == ["attention"]
        assert layers["0"]["intermediate_size"] == 32
    assert (layers["2"]["num_key_value_heads"], layers["2"]["sliding_window"]) == (1, 5)
    assert written["model_type"] == case.model_type
    assert written["architectures"] == [MODELS[case.model_type].__name__]
    assert arch_of(AutoConfig.from_pretrained(saved / case.name)) == case.mixed()
    with pytest.raises((RuntimeError, AttributeError, ValueError), match="per-layer"):
        AutoModelForCausalLM.from_pretrained(saved / case.name)
