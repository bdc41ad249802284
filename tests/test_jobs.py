"""`train` and `evaluate` as functions: what the tests of the commands do not reach."""

import pytest

from res2net_dense import train
from res2net_dense.errors import ConfigError


@pytest.mark.parametrize("wrong", [None, 3, ["task"]])
def test_what_is_not_a_configuration_is_named(wrong):
    with pytest.raises(ConfigError, match=f"a {type(wrong).__name__} is not a configuration"):
        train(wrong)
