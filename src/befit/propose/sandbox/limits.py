"""What one candidate may use. Values only; `confine` and `watch` hold a candidate to them."""

from dataclasses import dataclass, fields

MIB = 2**20
START = {"start_seconds": 0, "gpu_bytes": 0}
"""Limits that may be 0."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of one candidate and everything that it starts; what goes beyond them costs that trial."""

    wall_seconds: float = 30.0
    """Seconds until everything is killed, above 0."""

    start_seconds: float = 0.0
    """Seconds before those in which a fresh process may start; they end when befit's task says that it is ready
    (`candidate.ready`), before it runs a line of the candidate."""

    cpu_seconds: int = 60
    """CPU seconds of any one process, at least 1."""

    memory_bytes: int = 2048 * MIB
    """Memory of all processes together, the share of the fork server's that they inherit (about 200 MiB) included."""

    gpu_bytes: int = 0
    """GPU memory that its arrays may take; 0: as much as there is."""

    processes: int = 32
    """Processes and threads at once, at least 1."""

    file_bytes: int = 256 * MIB
    """Size of the largest file."""

    folder_bytes: int = 1024 * MIB
    """Size of all files of the candidate's folder together, those that it was given included."""

    open_files: int = 256
    """Open files of a process, at least 16."""

    output_bytes: int = MIB
    """What may be printed, stdout and stderr together; more ends the trial."""

    def __post_init__(self) -> None:
        least = {"wall_seconds": 0.01, "open_files": 16, "memory_bytes": 16 * MIB, "file_bytes": 4096, **START}
        for field in fields(self):
            value, low = getattr(self, field.name), least.get(field.name, 1)
            if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value:
                raise ValueError(f"{field.name}={value!r}: a number of at least {low} was expected")
