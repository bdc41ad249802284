"""Networks that tests share: `from networks import ...`."""

from unittest import mock

import pytest
import torch
from torch import nn

from res2net_dense.backbones import list_backbones

TINY = "test_res2net"
"""Where a test needs any network."""
TINY_V1B = "test_res2net_v1b"
TINY_RESNET = "test_resnet"
TINY_CIFAR = "test_se_res2next29"
SMALL = {"depths": (1, 1, 1, 1), "base_width": 32, "planes": 4}
"""Options that make any network but a DLA this small, for tests of a published name."""
FORMS = (
    "res2net50_26w_4s", "res2net50_v1b_26w_4s", "res2next50", "se_res2net50_26w_4s", "resnet50",
    "se_resnet50", "res2net_dla60", "res2next_dla60", "dla60", "dla60x", "res2next29_6c_24w_4s",
    "se_res2next29_6c_24w_4s",
)  # fmt: skip
"""One published network of each form of the block; the others have more blocks, or wider ones."""


def every_network(names=None):
    """`parametrize` over networks (default: all published ones): those that are not in `FORMS` are slow."""
    return pytest.mark.parametrize(
        "name",
        [
            name if name in FORMS else pytest.param(name, marks=pytest.mark.slow)
            for name in (list_backbones() if names is None else names)
        ],
    )


def unfilled(build):
    """Build a network without spending time on its first weights: they are whatever memory holds."""
    random = (
        "kaiming_normal_",
        "kaiming_uniform_",
        "normal_",
        "trunc_normal_",
        "uniform_",
        "xavier_uniform_",
    )
    with mock.patch.multiple(nn.init, **dict.fromkeys(random, lambda tensor, *_, **__: tensor)):
        return build()


def hollow(build):
    """Tensors with the names and shapes of a network's that share one number: their file is small."""
    with torch.device("meta"):
        state = build().state_dict()
    return {key: torch.zeros((), dtype=value.dtype).expand(value.shape) for key, value in state.items()}
