"""nested.json: what a nested checkpoint knows of itself. Written and read strictly.

For each budget that the model was trained for it keeps the member, what that costs, how good it is, and a hash of its weights,
so that a cut can be checked against what was trained. The weight files are named with their sizes, which are compared whenever
the folder is opened, and with their sha256, which `check_files` compares when asked: that reads every byte.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from befit.arch.decoder import DecoderShape
from befit.arch.member import Member
from befit.cost.count import Cost
from befit.cost.workload import Workload
from befit.elastic.budgets import Target
from befit.elastic.space import NestedSpace
from befit.errors import RunConflict
from befit.rundir import read_json, write_json

NAME = "nested.json"
VERSION = 1
"""Of this form of manifest; another one is refused."""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How good a member is on held-out text."""

    kl: float
    """KL from the parent, nats a token."""
    loss: float
    """Cross-entropy, nats a token."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One budget that the model was trained for, and the member that meets it."""

    target: Target
    member: Member
    cost: Cost
    """Counted, at the manifest's workload."""
    quality: Quality | None
    """None until it has been evaluated."""
    latency_ms: float | None
    """Measured on the device of the training run; None if it was not."""
    hash: str
    """Of the member's weights and sizes (`befit.elastic.nested.hash_of`)."""


@dataclass(frozen=True, kw_only=True)
class FileNote:
    """A weight file."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All of nested.json."""

    written_by: str
    """befit's version."""
    family: str
    """transformers' model_type."""
    space: NestedSpace
    workload: Workload
    """What `entries` were costed at."""
    entries: tuple[Entry, ...]
    """In the order in which the budgets were given."""
    router: Mapping[str, Any]
    """How the router is built: width and shares."""
    gains: Mapping[str, Any] | None
    """How the gains are built; None for a model without."""
    files: Mapping[str, FileNote]
    """The weight files of the folder, by name."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` reads them."""
        told = {field.name: getattr(self, field.name) for field in fields(self)}
        return (
            {"version": VERSION}
            | told
            | {
                "space": self.space.to_json(),
                "workload": asdict(self.workload),
                "entries": [_entry_json(entry) for entry in self.entries],
                "router": dict(self.router),
                "gains": None if self.gains is None else dict(self.gains),
                "files": {name: asdict(note) for name, note in self.files.items()},
            }
        )

    @staticmethod
    def from_json(data: Mapping[str, Any], shape: DecoderShape) -> "Manifest":
        """Read what `to_json` wrote of a parent of `shape`.

        Raises `RunConflict` for another version and for keys that are unknown or missing.
        """
        if data.get("version") != VERSION:
            raise RunConflict(
                f"the manifest has version {data.get('version')!r}, this befit reads version {VERSION}; "
                "use the befit that wrote it, or train again"
            )
        told = _exactly(data, ("version", *(field.name for field in fields(Manifest))), "the manifest")
        del told["version"]
        return Manifest(
            **told
            | {
                "space": NestedSpace.from_json(told["space"], shape),
                "workload": Workload(**_exactly(told["workload"], _names(Workload), "workload")),
                "entries": tuple(_entry(entry) for entry in told["entries"]),
                "files": {
                    name: FileNote(**_exactly(note, _names(FileNote), name)) for name, note in told["files"].items()
                },
            }
        )


def read_manifest(folder: Path, shape: DecoderShape) -> Manifest:
    """The manifest of a nested checkpoint of a parent of `shape`.

    Raises `RunConflict` if there is none, if it is damaged or of another version, or if a weight file has not the size that
    the manifest names.
    """
    path = folder / NAME
    if not path.is_file():
        raise RunConflict(
            f"{folder} holds no nested model (no {NAME}); give the --out of a finished `befit elastic` run"
        )
    try:
        manifest = Manifest.from_json(read_json(path), shape)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunConflict(f"{path} is damaged ({error}); copy it again, or train again") from error
    for name, note in manifest.files.items():
        file = folder / name
        found = file.stat().st_size if file.is_file() else None
        if found != note.bytes:
            what = "is missing" if found is None else f"has {found} bytes"
            raise RunConflict(
                f"{file} {what}, the manifest was written for {note.bytes} bytes; copy the whole folder again, or train again"
            )
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write nested.json whole or not at all."""
    write_json(folder / NAME, manifest.to_json())


def note_files(folder: Path) -> dict[str, FileNote]:
    """Size and sha256 of every safetensors file in a folder."""
    files = sorted(folder.glob("*.safetensors"))
    return {file.name: FileNote(bytes=file.stat().st_size, sha256=_sha256(file)) for file in files}


def check_files(folder: Path, manifest: Manifest) -> None:
    """Read every weight file and raise `RunConflict` if one is not what the manifest was written for."""
    for name, note in manifest.files.items():
        if _sha256(folder / name) != note.sha256:
            raise RunConflict(
                f"{folder / name} was changed since its manifest was written; copy it again, or train again"
            )


def evaluated(
    manifest: Manifest, quality: Mapping[float, Quality], latency_ms: Mapping[float, float] | None = None
) -> Manifest:
    """The manifest with how good (and how fast) the trained members turned out to be, by share."""
    latency_ms = latency_ms or {}
    entries = tuple(
        replace(
            entry,
            quality=quality.get(entry.target.share, entry.quality),
            latency_ms=latency_ms.get(entry.target.share, entry.latency_ms),
        )
        for entry in manifest.entries
    )
    return replace(manifest, entries=entries)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _entry_json(entry: Entry) -> dict[str, Any]:
    return {
        "target": asdict(entry.target),
        "member": entry.member.to_json(),
        "cost": asdict(entry.cost) | {"memory_bytes": entry.cost.memory_bytes},
        "quality": None if entry.quality is None else asdict(entry.quality),
        "latency_ms": entry.latency_ms,
        "hash": entry.hash,
    }


def _entry(data: Any) -> Entry:
    told = _exactly(data, _names(Entry), "an entry")
    cost = _exactly(told["cost"], (*_names(Cost), "memory_bytes"), "cost")
    del cost["memory_bytes"]  # the sum of two others, for readers of the file
    quality = told["quality"]
    return Entry(
        target=Target(**_exactly(told["target"], _names(Target), "target")),
        member=Member.from_json(told["member"]),
        cost=Cost(**cost),
        quality=None if quality is None else Quality(**_exactly(quality, _names(Quality), "quality")),
        latency_ms=told["latency_ms"],
        hash=told["hash"],
    )


def _names(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


def _exactly(data: Any, keys: tuple[str, ...], where: str) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise RunConflict(f"{where}: expected an object with the keys {', '.join(keys)}, got {data!r}")
    if set(data) != set(keys):
        unknown, missing = sorted(set(data) - set(keys)), sorted(set(keys) - set(data))
        raise RunConflict(
            f"{where}: unknown keys {unknown}, missing keys {missing}; use the befit that wrote it, or train again"
        )
    return dict(data)
