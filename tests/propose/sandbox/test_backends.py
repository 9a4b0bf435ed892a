"""Command lines of the outer walls, and the environment that goes in."""

from pathlib import Path

import pytest

from befit.propose.sandbox import backends
from befit.propose.sandbox.backends import SERVER, command, environment

FOLDER = Path("/somewhere/befit-sandbox-x")


@pytest.fixture(autouse=True)
def _programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends.shutil, "which", lambda name: f"/usr/bin/{name}")


def _pairs(argv: list[str], option: str) -> list[tuple[str, str]]:
    return [(argv[at + 1], argv[at + 2]) for at, word in enumerate(argv) if word == option]


def test_bubblewrap_binds_only_what_python_needs() -> None:
    argv = command("bwrap", FOLDER, {"HOME": str(FOLDER)}, gpu=False)
    assert {"--unshare-all", "--clearenv", "--die-with-parent", "--new-session"} <= set(argv)
    assert "--share-net" not in argv
    assert _pairs(argv, "--bind") == [(str(FOLDER), str(FOLDER))]
    assert _pairs(argv, "--setenv") == [("HOME", str(FOLDER))]
    bound = [path for path, _ in _pairs(argv, "--ro-bind-try")]
    assert "/usr" in bound
    assert not {"/", "/home", "/root", "/etc", "/proc", "/dev", "/tmp"} & set(bound)
    assert tuple(argv[-len(SERVER) :]) == SERVER


def test_docker_has_no_network_no_rights_and_one_writable_folder() -> None:
    argv = command("docker:torch:2.13", FOLDER, {"OPENAI_API_KEY": "no"}, gpu=False)
    for option in ("--network none", "--cap-drop ALL", "--security-opt no-new-privileges", "--read-only", "--rm"):
        assert option in " ".join(argv)
    volumes = [argv[at + 1] for at, word in enumerate(argv) if word == "--volume"]
    assert [volume for volume in volumes if not volume.endswith(":ro")] == [f"{FOLDER}:{FOLDER}"]
    assert "OPENAI" not in " ".join(argv)
    assert argv[argv.index("torch:2.13") + 1 :] == ["python", *SERVER]
    assert "--gpus" not in argv
    assert "--gpus" in command("docker:torch:2.13", FOLDER, {}, gpu=True)


def test_without_a_wall_the_server_is_a_plain_process() -> None:
    assert command("native", FOLDER, {}, gpu=False)[1:] == list(SERVER) == command("none", FOLDER, {}, gpu=False)[1:]


def test_elsewhere_than_on_linux_only_a_container_remains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends.sys, "platform", "darwin")
    for backend in ("native", "none", "bwrap"):
        with pytest.raises(backends.NoSandbox, match="needs Linux, this is darwin: use docker:IMAGE"):
            command(backend, FOLDER, {}, gpu=False)
    assert command("docker:torch", FOLDER, {}, gpu=False)


def test_the_environment_is_an_allow_list(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "SSH_AUTH_SOCK", "LD_PRELOAD"):
        monkeypatch.setenv(name, "key")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setenv("PYTHONPATH", "src:/elsewhere")
    plain, gpu = environment(FOLDER, gpu=False), environment(FOLDER, gpu=True)
    assert "key" not in plain.values()
    assert plain["HOME"] == plain["TMPDIR"] == str(FOLDER)
    assert plain["OMP_NUM_THREADS"] == "1"
    assert plain["PYTHONPATH"] == f"{Path('src').absolute()}:/elsewhere", "the server has another current directory"
    assert (plain["CUDA_VISIBLE_DEVICES"], gpu["CUDA_VISIBLE_DEVICES"]) == ("", "3")
