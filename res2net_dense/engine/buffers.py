"""The buffers of a model as they were before an iteration, so that an unfinished one can be taken back."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d


class BuffersBefore:
    """Copies that are kept from one iteration to the next: on a GPU they take a few launches together.

    Frozen norms, which are most of a detector's, do not change theirs.
    """

    def __init__(self, model: nn.Module) -> None:
        own = {
            id(buffer): buffer
            for module in model.modules()
            if not isinstance(module, FrozenBatchNorm2d)
            for buffer in module.buffers(recurse=False)
        }
        # One launch takes tensors of one type.
        groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for buffer in own.values():
            groups.setdefault((buffer.device, buffer.dtype), []).append(buffer)
        self._pairs = [(group, [buffer.clone() for buffer in group]) for group in groups.values()]
        self._is_taken = False

    @torch.no_grad()
    def take(self) -> None:
        """Copy the buffers."""
        for buffers, copies in self._pairs:
            torch._foreach_copy_(copies, buffers)
        self._is_taken = True

    @torch.no_grad()
    def put_back(self) -> None:
        """Give the buffers the values of the last `take`; do nothing after `forget`."""
        for buffers, copies in self._pairs if self._is_taken else ():
            torch._foreach_copy_(buffers, copies)

    def forget(self) -> None:
        """The iteration is finished: there is nothing to take back."""
        self._is_taken = False
