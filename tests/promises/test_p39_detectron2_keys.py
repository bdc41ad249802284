"""P39: a setting acts or is refused: detectron2's own keys in `model.detectron2` too."""

import pytest
import torch
from fingerprint import look

from res2net_dense.errors import ConfigError
from res2net_dense.models.detection_config import OWNED, get_cfg
from res2net_dense.models.rcnn import build_rcnn


def leaves(node, path=()):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield ".".join((*path, key)), value


def others(value):
    """Values of the same type, of which a key takes one or another."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value * 2]
    if isinstance(value, float):
        return [value / 2 + 0.1, value + 1]
    if isinstance(value, str):
        return ["smooth_l1", "giou", "GN", "ROIPool", "avg"]
    if isinstance(value, (list, tuple)):
        numbers = all(isinstance(item, (int, float)) for item in value)
        doubled = [type(value)([item * 2 for item in value])] if numbers else []
        return [type(value)([*value, *value]), *doubled, value[:1]]
    return [1]


def network(mask, passed):
    with torch.device("meta"):
        built = build_rcnn(backbone={"name": "test_res2net"}, mask=mask, num_classes=3, detectron2=passed)
    return look(built, {})


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.slow
def test_keys_of_detectron2_act_or_are_refused(mask):
    plain, acted = network(mask, {}), set()
    assert network(mask, {}) == plain
    for key, default in leaves(get_cfg()):
        for value in (one for one in others(default) if one != default):
            try:
                after = network(mask, {key: value})
            except ConfigError:
                continue
            assert after != plain, (key, value)
            acted.add(key)
            break
    assert len(acted) > 20
    assert not acted & OWNED.keys()
