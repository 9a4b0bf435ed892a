"""Parts of tensors straight from the safetensors files of a checkpoint, and weights written to files one after the other.

What is read is what a member keeps: of every tensor the rows it keeps, and of these only the columns. Files are memory-mapped by
safetensors, so a slice costs the bytes it has and not those of the tensor.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from befit.errors import RunConflict
from befit.lm.prefix import Dimension, ranges
from befit.rundir import write_json

SHARD_BYTES = 5_000_000_000
"""Of one file, at most, unless a single tensor is larger: a file's tensors are in memory together while it is written."""

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
"""What transformers calls the file of a small checkpoint, and the list of the files of a large one."""


class Checkpoint:
    """The weights of a folder, opened but not read. A context manager."""

    def __init__(self, folder: Path, files: Iterable[str], rename: Callable[[str], str]) -> None:
        """`rename` turns a name in a file into that in memory, under which tensors are asked for.

        Raises `RunConflict` for a file that is no safetensors file.
        """
        self.bytes_read = 0
        """Of all slices so far."""
        self._stack, self._found = ExitStack(), dict[str, tuple[Any, str]]()
        for name in files:
            try:
                opened: Any = self._stack.enter_context(safe_open(folder / name, framework="pt"))
            except (SafetensorError, OSError) as error:
                self._stack.close()
                raise RunConflict(f"{folder / name} cannot be read ({error}); copy it again") from error
            self._found |= {rename(stored): (opened, stored) for stored in opened.keys()}  # noqa: SIM118 (not iterable)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def names(self) -> tuple[str, ...]:
        """Of all tensors, as they are called in memory, in the order of the files."""
        return tuple(self._found)

    def stored_name(self, name: str) -> str:
        """What a tensor is called in its file. Raises `RunConflict` if there is none of this name in memory."""
        return self._entry(name)[1]

    def dtype(self, name: str) -> torch.dtype:
        """The format of a tensor, as it is stored."""
        opened, stored = self._entry(name)
        # No property tells it as torch's; an empty slice has it.
        return opened.get_slice(stored)[:0].dtype

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, whole."""
        opened, stored = self._entry(name)
        return tuple(opened.get_slice(stored).get_shape())

    def read(self, name: str, dimensions: tuple[Dimension, ...]) -> Tensor:
        """The part of a tensor (at most two of whose dimensions are cut) that the dimensions keep, as it is stored.

        Raises `RunConflict` if the stored tensor is not of the shape that the dimensions describe.
        """
        opened, stored = self._entry(name)
        wanted = tuple(sum(segment.size for segment in segments) for segments in dimensions)
        part = opened.get_slice(stored)
        if tuple(part.get_shape()) != wanted:
            raise RunConflict(
                f"{stored} has the shape {part.get_shape()}, config.json tells {list(wanted)}; copy it again"
            )
        rows = list(ranges(dimensions[0]))
        columns = list(ranges(dimensions[1])) if len(dimensions) > 1 else []
        pieces = []
        for begin, end in rows:
            # Columns in several stretches: the hull is read, then cut.
            piece = part[begin:end, columns[0][0] : columns[-1][1]] if columns else part[begin:end]
            self.bytes_read += piece.numel() * piece.element_size()
            pieces.append(_columns(piece, columns))
        return pieces[0].contiguous() if len(pieces) == 1 else torch.cat(pieces)

    def whole(self, name: str) -> Tensor:
        """A tensor as it is stored."""
        opened, stored = self._entry(name)
        found = opened.get_tensor(stored)
        self.bytes_read += found.numel() * found.element_size()
        return found

    def _entry(self, name: str) -> tuple[Any, str]:
        if name not in self._found:
            raise RunConflict(f"the checkpoint has no tensor {name}; copy the whole folder again")
        return self._found[name]


def write_shards(folder: Path, tensors: Iterator[tuple[str, Tensor]], planned: Mapping[str, int], limit: int) -> None:
    """Write tensors as transformers' `save_pretrained` lays them out, a file at a time.

    `planned` gives the bytes of every tensor in the order in which `tensors` yields them; a new file begins where the next
    tensor would make the last one larger than `limit` bytes.
    """
    files, filled = list[dict[str, int]](), limit
    for name, size in planned.items():
        if filled + size > limit or not files:
            files.append({})
            filled = 0
        files[-1][name] = size
        filled += size
    names = (
        [WEIGHTS]
        if len(files) == 1
        else [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))]
    )
    for file, wanted in zip(names, files, strict=True):
        held = dict(next(tensors) for _ in wanted)
        save_file(
            {name: tensor.contiguous() for name, tensor in held.items()}, folder / file, metadata={"format": "pt"}
        )
        del held
    if len(files) > 1:
        where = {name: file for file, wanted in zip(names, files, strict=True) for name in wanted}
        write_json(folder / INDEX, {"metadata": {"total_size": sum(planned.values())}, "weight_map": where})


def _columns(piece: Tensor, columns: list[tuple[int, int]]) -> Tensor:
    if len(columns) < 2:
        return piece
    begin = columns[0][0]
    return torch.cat([piece[:, start - begin : stop - begin] for start, stop in columns], dim=1)
