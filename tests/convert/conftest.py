"""Small networks, and a file of anything: read, or refused in one line."""

import pytest
import torch

from res2net_dense.backbones import create_classifier
from res2net_dense.convert import read_checkpoint
from res2net_dense.errors import CheckpointError

SMALL = {"depths": (1, 2, 1, 1), "base_width": 32, "planes": 4}
"""Two blocks in one stage: both kinds of them."""


@pytest.fixture(scope="session")
def state():
    return create_classifier("res2net50_26w_4s", 5, **SMALL).state_dict()


@pytest.fixture(scope="session")
def deep_state():
    return create_classifier("res2net50_v1b_26w_4s", 5, **SMALL).state_dict()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "w.pth"


@pytest.fixture
def read(path):
    """Read a file of `content`, or the one that is there."""

    def write_and_read(content=None, **arguments):
        if content is not None:
            torch.save(content, path)
        return read_checkpoint(path, **arguments)

    return write_and_read


@pytest.fixture
def refused(read, path):
    def check(content, words, **arguments):
        with pytest.raises(CheckpointError, match=words) as caught:
            read(content, **arguments)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return check
