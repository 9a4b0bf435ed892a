"""Files that survive a crash, and a run directory that remembers what was asked of it.

Every file is written whole or not at all: into a temporary file beside it, flushed to disk, then renamed. A stage of a run
is kept under a key made from everything that went into it; a stage whose key is unchanged is read, not redone.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from befit.errors import DiskFull, RunConflict


def digest(*parts: Any) -> str:
    """A short name (16 hex digits) for JSON values: equal values, equal names, in any process."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def befit_version() -> str:
    """The version that writes; "unknown" where befit runs from its source without being installed."""
    try:
        return version("befit")
    except PackageNotFoundError:
        return "unknown"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what was written there takes its place when the block ends well.

    Raises `DiskFull` instead of the system's error when there is no room, `RunConflict` where nothing can be written; the old
    file stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with _room_for(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _room_for(path, temporary):
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Raise `RunConflict` now if `replacing` could not write this file after hours of work; what is there stays as it is."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with _room_for(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(temporary))
        temporary.touch()
        temporary.unlink()


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path`; it takes its place when the block ends well. Raises as `replacing` does."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with _room_for(path, temporary):
            temporary.mkdir(parents=True)
            yield temporary
            shutil.rmtree(path, ignore_errors=True)
            temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _room_for(path: Path, temporary: Path) -> Iterator[None]:
    """Turn the system's "no space left" into `DiskFull`, which safetensors reports as an error of its own.

    An error about `temporary` itself, or a folder above it, says that `path` cannot be written: that is a `RunConflict`.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        code = error.errno if isinstance(error, OSError) else None
        if code != errno.ENOSPC and f"os error {errno.ENOSPC}" not in str(error):
            if (
                isinstance(error, OSError)
                and error.filename is not None
                and temporary.is_relative_to(str(error.filename))
            ):
                raise RunConflict(f"{path} cannot be written ({error.strerror}); give another --out") from error
            raise
        raise DiskFull(
            f"no room on the disk for {path}; free some space and run the same command again: "
            "everything finished so far is kept"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all; NaN is refused, because strict readers cannot read it."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_tensors(path: Path, tensors: Mapping[str, Any]) -> None:
    """Write a safetensors file whole or not at all; tensors that share memory, as tied weights do, are written each."""
    from safetensors.torch import save_file

    own, seen = dict[str, Any](), set[int]()
    for name, tensor in tensors.items():
        held = tensor.detach().cpu().contiguous()
        memory = held.data_ptr()
        own[name] = held.clone() if memory in seen else held
        seen.add(memory)
    with replacing(path) as temporary:
        save_file(own, temporary)


def read_tensors(path: Path) -> dict[str, Any]:
    """Read a safetensors file to the CPU."""
    from safetensors.torch import load_file

    return load_file(path)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a run directory, made if it is not there: two processes in one run would do, and pay for, everything twice.

    The system lets go of it when the process ends, however it ends; where the file system has no such locks, nothing is held.
    Raises `RunConflict` if another process holds it.
    """
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # whoever writes the first file says what is wrong with this place
        yield
        return
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        raise RunConflict(f"another process is at work on {folder}; wait for its end, or give another --out") from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS):
            os.close(held)
            raise
    try:
        yield
    finally:
        if made:
            with suppress(OSError):  # a run that was refused leaves nothing
                folder.rmdir()
        os.close(held)


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a run. Raises `RunConflict` if the folder holds none that can be read."""
    try:
        found = read_json(folder / "config.json")
    except OSError as error:
        raise RunConflict(
            f"{folder} is no run directory (it has no config.json that can be read); give the --out of an earlier run"
        ) from error
    except ValueError as error:
        raise RunConflict(f"{folder}/config.json is damaged ({error}); give another --out") from error
    if not isinstance(found, dict):
        raise RunConflict(f"{folder}/config.json holds no run's configuration; give another --out")
    return found


def rebuilt(kind: Any, data: Mapping[str, Any], where: str = "config.json") -> Any:
    """The dataclass `kind`, nested ones included, from what `dataclasses.asdict` made of it and JSON kept of that.

    Raises `RunConflict` for a key this version does not know.
    """
    hints = get_type_hints(kind)
    unknown = sorted(set(data) - set(hints))
    if unknown:
        raise RunConflict(f"{where} has keys that this version of befit does not know: {', '.join(unknown)}")
    return kind(**{name: _value(hints[name], value, f"{where}: {name}") for name, value in data.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    if is_dataclass(hint):
        return rebuilt(hint, value, where)
    options = get_args(hint) if get_origin(hint) is UnionType else (hint,)
    if value is not None and Path in options:
        return Path(value)
    if isinstance(value, list):
        inner = (*get_args(hint), None)[0]
        return tuple(_value(inner, item, where) for item in value)
    return value


def _changes(name: str, old: Any, new: Any) -> list[str]:
    """What differs between two settings, each in a few words; of groups of settings, only those that do."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        inner = sorted({*old, *new})
        return [one for k in inner for one in _changes(f"{name}.{k}", old.get(k), new.get(k))]
    return [] if old == new else [f"{name} was {old!r}, now {new!r}"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of a run, for the record."""

    name: str
    """rank, library, score, …"""
    seconds: float
    """Time it took when it was done, which may have been in an earlier call."""
    reused: bool
    """Whether this call found it done."""


@dataclass(kw_only=True)
class Run:
    """A run directory: `config.json`, `stages/NAME-KEY/…`, `summary.json`, `report.html`, `child/`."""

    folder: Path
    """Where everything lies."""
    stages: list[Stage] = field(default_factory=list)
    """What this call has been through so far."""

    @staticmethod
    def open(folder: Path, config: Mapping[str, Any], *, may_change: tuple[str, ...]) -> "Run":
        """Make or re-enter a run directory.

        Raises `RunConflict` if it holds a run whose configuration differs in anything but `may_change`, or if it holds
        files that are no run at all. A run that has not finished a stage has nothing to lose and may be replaced.
        """
        written = folder / "config.json"
        if folder.exists() and not folder.is_dir():
            raise RunConflict(f"{folder} is a file, a run needs a directory; give another --out")
        if written.exists():
            old = read_config(folder)
            differing = [k for k in sorted({*old, *config}) if k not in may_change and old.get(k) != config.get(k)]
            if differing and any(folder.glob("stages/*/done.json")):
                if old.get("verb") != config.get("verb"):
                    raise RunConflict(f"{folder} holds a run of another kind; give another --out")
                shown = "; ".join(one for k in differing for one in _changes(k, old.get(k), config.get(k)))
                raise RunConflict(
                    f"{folder} holds a run with another configuration ({shown}); "
                    "give another --out, or the old values to continue it"
                )
        elif folder.exists() and any(folder.iterdir()):
            raise RunConflict(f"{folder} exists, is not empty and holds no befit run; give another --out")
        write_json(written, dict(config))
        return Run(folder=folder)

    def stage_folder(self, name: str, key: str) -> Path:
        """Where a stage lies; made if it is not there."""
        folder = self.folder / "stages" / f"{name}-{key}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def is_done(self, name: str, key: str) -> bool:
        """Whether a stage was completed under this key."""
        return (self.folder / "stages" / f"{name}-{key}" / "done.json").exists()

    def stage(self, name: str, key: str, make: Callable[[Path], None]) -> Path:
        """The folder of a stage, made by `make(folder)` unless it was completed before under the same key.

        `make` may find files of an interrupted attempt in the folder and may use those that are complete.
        """
        reused = self.is_done(name, key)
        folder = self.stage_folder(name, key)
        done = folder / "done.json"
        if not reused:
            begin = time.perf_counter()
            make(folder)
            write_json(done, {"seconds": round(time.perf_counter() - begin, 3)})
        self.stages.append(Stage(name=name, seconds=read_json(done)["seconds"], reused=reused))
        return folder
