"""Which tensors an operation makes, and how many bytes of them live."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from weakref import finalize

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


class Watched(TorchDispatchMode):
    """``line``: bytes of the tensors made under it that live after each operation."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.line: list[int] = []
        self.known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The operation, and what it made."""
        for storage in storages((args, kwargs)):
            self.known[storage] = None
        made = func(*args, **(kwargs or {}))
        for storage in storages(made):
            if storage not in self.known:
                self.known[storage] = None
                self.live += storage.nbytes()
                finalize(storage, self._gone, storage.nbytes())
        self.line.append(self.live)
        return made

    def _gone(self, size: int) -> None:
        self.live -= size


def storages(tree: Any) -> Iterator[Any]:
    """The storages of all tensors in a nested structure."""
    return (leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))
