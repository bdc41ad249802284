"""Whether weights have changed, for what is made of them and kept."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


def weight_state(tensors: Iterable[Tensor]) -> list[tuple[int, int | None]]:
    """Where each tensor is and how often it was changed in place; None if it was made in inference mode,
    which does not count. Hold the tensors, so that no others get their addresses. A change through
    `tensor.data` goes unnoticed, as PyTorch does not count it.
    """
    return [(one.data_ptr(), None if one.is_inference() else one._version) for one in tensors]
