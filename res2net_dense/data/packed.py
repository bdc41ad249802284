"""A list of records that worker processes share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

T = TypeVar("T")


class PackedRecords(Sequence[T], Generic[T]):
    """Records in one block of bytes, decoded one at a time.

    Reading a Python object writes its reference count, so each worker would end up with a copy of a whole
    list.
    """

    def __init__(self, records: Iterable[Any], decode: Callable[[Any], T]) -> None:
        """Pack what json can hold; `decode` makes an item of it, and unforked workers need it picklable."""
        self._decode = decode
        encoded = [json.dumps(record, separators=(",", ":")).encode() for record in records]
        self._block = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._ends = np.cumsum([0, *map(len, encoded)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        return self._decode(json.loads(self._block[self._ends[index] : self._ends[index + 1]].tobytes()))
