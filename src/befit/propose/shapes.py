"""Operators on the meta device, where a result is a shape: one that came before is not worked out again.

PyTorch computes most of these shapes in Python, up to a millisecond for an operator. Networks repeat their blocks, so that it
pays to remember. Only operators that neither change nor alias what they are given are remembered.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_Form = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]
"""Size, strides and number format of a tensor: all that there is to one without numbers."""


class Shapes(TorchDispatchMode):
    """Answers from memory while it is entered; `run` does so at any time."""

    def __init__(self) -> None:
        super().__init__()
        self._known = dict[tuple[Any, ...], Any]()
        """Operator and arguments to the form of the result, or the forms of the results."""
        self._pure = dict[Any, bool]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The result of an operator; on the meta device perhaps from memory."""
        parts = list[Any]([func])
        if not self._is_pure(func) or not (_flat(args, parts) and _flat(tuple(kwargs.items()), parts)):
            return func(*args, **kwargs)
        key = tuple(parts)
        if key in self._known:
            return _made(self._known[key])
        result = func(*args, **kwargs)
        several = isinstance(result, tuple)
        if all(one is None or one.is_meta for one in (result if several else (result,))):
            self._known[key] = tuple(map(_form, result)) if several else _form(result)
        return result

    def _is_pure(self, func: Any) -> bool:
        """Whether its schema promises that results are new tensors and arguments stay as they are."""
        if func not in self._pure:
            schema = func._schema
            self._pure[func] = not schema.is_mutable and not any(
                one.alias_info is not None or str(one.type) not in ("Tensor", "Optional[Tensor]")
                for one in schema.returns
            )
        return self._pure[func]


def _flat(value: Any, parts: list[Any]) -> bool:
    """Append what tells one argument from another; False if it is a tensor with numbers, or nothing plain."""
    match value:
        case Tensor():
            if not value.is_meta or type(value) not in (Tensor, nn.Parameter) or value.is_complex():
                return False
            parts += [value.shape, value.stride(), value.dtype]
            return value.layout == torch.strided
        case list() | tuple():
            parts.append(len(value))
            return all(_flat(one, parts) for one in value)
        case bool() | int() | float() | str():
            parts += [type(value), value]
            return True
        case _:
            parts.append(value)
            return value is None or isinstance(value, torch.dtype | torch.device | torch.layout | torch.memory_format)


def _form(result: Tensor | None) -> _Form | None:
    return None if result is None else (tuple(result.shape), result.stride(), result.dtype)


def _made(forms: Any) -> Any:
    """The result of that form, or the results of those forms."""
    if forms is None:
        return None
    if isinstance(forms[-1], torch.dtype):
        return torch.empty_strided(*forms[:2], dtype=forms[2], device="meta")
    return tuple(map(_made, forms))
