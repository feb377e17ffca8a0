"""Tensors in safetensors files, each of which may have a part of the rows of every tensor."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor


class TensorFiles(Mapping[str, Tensor]):
    """The tensors of some safetensors files, read from disk at each access.

    Parts of the same tensor are joined along the rows in the order of the files; of a number, which has no rows,
    the first file's is taken.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._parts: dict[str, list[tuple[Path, list[int]]]] = {}
        for path in paths:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    self._parts.setdefault(name, []).append((path, file.get_slice(name).get_shape()))

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, name: str) -> Tensor:
        return self.rows(name, 0, sum(shape[0] for _, shape in self._parts[name] if shape))

    def shape(self, name: str) -> tuple[int, ...]:
        shapes = [shape for _, shape in self._parts[name]]
        return (sum(rows for rows, *_ in shapes), *shapes[0][1:]) if shapes[0] else ()

    def rows(self, name: str, first: int, last: int) -> Tensor:
        """Rows from `first` up to but not including `last`, on the CPU."""
        (path, shape), *_ = self._parts[name]
        if not shape:
            with safe_open(path, "pt") as file:
                return file.get_tensor(name).clone()
        found, start = [torch.empty(0, *shape[1:])], 0
        for path, (rows, *_) in self._parts[name]:
            end = start + rows
            if max(first, start) < min(last, end):
                with safe_open(path, "pt") as file:
                    found.append(file.get_slice(name)[max(first, start) - start : min(last, end) - start])
            start = end
        return torch.cat(found)
