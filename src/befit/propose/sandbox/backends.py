"""The command that starts the fork server: by itself, inside bubblewrap, or inside a container.

With `bwrap` and `docker` the mechanisms of `confine` are tried inside too, and used where the outer wall leaves them.
"""

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from befit.errors import BefitError
from befit.propose.sandbox import confine
from befit.propose.sandbox.limits import MIB

SERVER = ("-P", "-m", "befit.propose.sandbox.forkserver")
KEPT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH")
"""All that candidates see of the environment; keys and tokens have other names."""

SET = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # fewer, larger pages: forking takes half the time
    "PYTHONDONTWRITEBYTECODE": "1",
    "USER": "candidate",
}


class NoSandbox(BefitError):
    """A sandbox that was asked for and is not there."""


def environment(folder: Path, *, gpu: bool) -> dict[str, str]:
    """What the server and its candidates see: an allow-list, not a list of secrets to hide."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    if "PYTHONPATH" in kept:  # the server has another current directory
        kept["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, kept["PYTHONPATH"].split(os.pathsep)))
    kept |= {"CUDA_DEVICE_ORDER": os.environ["CUDA_DEVICE_ORDER"]} if "CUDA_DEVICE_ORDER" in os.environ else {}
    shown = (
        os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] if gpu else ""
    )  # one GPU, the first of befit's own
    return {**kept, **SET, "CUDA_VISIBLE_DEVICES": shown, "HOME": str(folder), "TMPDIR": str(folder)}


def command(backend: str, folder: Path, variables: Mapping[str, str], *, gpu: bool) -> list[str]:
    """argv of the fork server.

    Args:
        backend: "native", "none", "bwrap", or "docker:IMAGE" (an image that has befit's requirements).
        folder: Where candidates live; the only thing that is shared writable.
        variables: The environment inside.
        gpu: Whether NVIDIA's devices are let in.

    Raises:
        NoSandbox: The program is not installed, there is no such backend, or this is not Linux.
    """
    kind, _, image = backend.partition(":")
    if kind != "docker" and sys.platform != "linux":
        raise NoSandbox(f"sandbox {backend!r} needs Linux, this is {sys.platform}: use docker:IMAGE")
    if backend in ("native", "none"):
        return [sys.executable, *SERVER]
    if backend == "bwrap":
        return _bwrap(folder, variables, gpu)
    if kind == "docker" and image:
        return _docker(folder, image, variables, gpu)
    raise NoSandbox(f"sandbox {backend!r}: expected native, bwrap, docker:IMAGE or none")


def _bwrap(folder: Path, variables: Mapping[str, str], gpu: bool) -> list[str]:
    program = shutil.which("bwrap")
    if program is None:
        raise NoSandbox(
            "there is no bwrap here: install bubblewrap (Debian: apt-get install bubblewrap), or leave --sandbox out"
        )
    argv = [program, "--die-with-parent", "--unshare-all", "--new-session", "--clearenv"]
    for name, value in variables.items():
        argv += ["--setenv", name, value]
    argv += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
    for path in confine.readable(gpu=gpu):
        if not path.startswith(("/proc", "/dev")):
            argv += ["--ro-bind-try", path, path]
    for path in confine.devices(gpu=gpu)[1:]:
        argv += ["--dev-bind", path, path]
    argv += [
        "--bind",
        str(folder),
        str(folder),
        "--remount-ro",
        "/tmp",
        "--remount-ro",
        "/dev",
    ]  # files there are memory
    return [*argv, "--chdir", str(folder), sys.executable, *SERVER]


def _docker(folder: Path, image: str, variables: Mapping[str, str], gpu: bool) -> list[str]:
    program = shutil.which("docker")
    if program is None:
        raise NoSandbox("there is no docker here: install it, or leave --sandbox out")
    argv = [program, "run", "--rm", "--interactive", "--network", "none", "--read-only", "--cap-drop", "ALL"]
    argv += ["--security-opt", "no-new-privileges", "--pids-limit", "512", "--memory", f"{16 * 1024 * MIB}"]
    argv += ["--user", f"{os.getuid()}:{os.getgid()}", "--workdir", str(folder)]
    argv += ["--volume", f"{folder}:{folder}", "--volume", f"{confine.PACKAGE}:/befit/befit:ro"]
    shown = {name: value for name, value in variables.items() if gpu and name.startswith("CUDA_")}
    for name, value in ({**SET, **shown, "HOME": str(folder), "TMPDIR": str(folder), "PYTHONPATH": "/befit"}).items():
        argv += ["--env", f"{name}={value}"]
    return [*argv, *(["--gpus", "all"] if gpu else []), image, "python", *SERVER]
