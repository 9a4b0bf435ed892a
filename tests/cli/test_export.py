"""`befit export`, for language models and image networks; ONNX itself is tested with the search."""

from pathlib import Path

import pytest

from befit.cli import main
from export.test_gguf import MIXED, child


def test_a_language_model_goes_to_every_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    child(tmp_path / "child", "llama", MIXED)
    assert main(["export", str(tmp_path), "--to", "vllm", "--dtype", "bf16"]) == 0
    told = capsys.readouterr().out
    assert f"serve   vllm serve {tmp_path / 'child-vllm'} --trust-remote-code" in told
    assert "nemotron-nas form" in told and "bf16" in told and "note    FFN widths 40, 64, 96" in told
    assert main(["export", str(tmp_path / "child"), "--to", "gguf", "--dtype", "q8_0"]) == 0
    assert f"serve   llama-server -m {tmp_path / 'child.gguf'}" in capsys.readouterr().out
    out = tmp_path / "hub"
    assert (
        main(["export", str(tmp_path), "--to", "hf", "--name", "me/small", "--license", "mit", "--out", str(out)]) == 0
    )
    assert f"push    hf upload me/small {out}" in capsys.readouterr().out
    assert "license: mit" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give --to vllm, --to gguf or --to hf"),
        (["--to", "onnx"], "give --to vllm, --to gguf or --to hf"),
        (["--to", "vllm", "--int8"], "--to vllm has no use for --int8"),
        (["--to", "gguf", "--name", "me/small", "--license", "mit"], "no use for --name, --license"),
        (["--to", "hf", "--size", "64"], "--to hf has no use for --size"),
        (["--to", "vllm", "--dtype", "q8_0"], "dtype must be one of fp32, bf16, fp16"),
    ],
)
def test_what_does_not_go_together_is_said(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    child(tmp_path / "child", "llama", MIXED)
    assert main(["export", str(tmp_path), *words]) == 2
    assert message in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"child"}


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--to", "vllm"], "holds no language model"), (["--dtype", "bf16"], "--to onnx has no use for --dtype")],
)
def test_an_image_network_goes_to_onnx_alone(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(tmp_path), *words]) == 2
    assert message in capsys.readouterr().err


def test_an_embedded_parent_goes_into_the_folder_where_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", "befit:dense", "--to", "gguf", "--dtype", "q8_0"]) == 0
    assert "serve   llama-server -m befit-dense.gguf" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["befit-dense.gguf"]


def test_a_folder_that_is_not_there_is_said_to_be_absent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path / "absent"), "--to", "gguf"]) == 2
    assert f"{tmp_path / 'absent'} is not there" in capsys.readouterr().err


def test_a_run_that_is_not_finished_is_to_be_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "stages").mkdir()
    (tmp_path / "config.json").write_text('{"budget": "memory=70%"}')
    for words in (["export", str(tmp_path), "--to", "gguf"], ["bench", str(tmp_path), "--device", "cpu"]):
        assert main(words) == 2
        assert f"has no child yet; finish the run first: befit resume {tmp_path}" in capsys.readouterr().err
