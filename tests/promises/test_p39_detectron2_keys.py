"""P39: a setting acts or is refused: detectron2's own keys in `model.detectron2` too."""

from functools import partial

import pytest
import torch
from fingerprint import look

from res2net_dense.errors import ConfigError
from res2net_dense.models.detection_config import RETINANET_SETTINGS, SETTINGS, get_cfg, owned
from res2net_dense.models.rcnn import build_rcnn
from res2net_dense.models.retinanet import build_retinanet


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


@pytest.mark.parametrize(("build", "settings", "count"), [
    (partial(build_rcnn, mask=True), SETTINGS, 20),
    (partial(build_rcnn, mask=False), SETTINGS, 20),
    (build_retinanet, RETINANET_SETTINGS, 7),
], ids=["mask", "faster", "retinanet"])  # fmt: skip
@pytest.mark.slow
def test_keys_of_detectron2_act_or_are_refused(build, settings, count):
    def network(passed):
        with torch.device("meta"):
            built = build(backbone={"name": "test_res2net"}, num_classes=3, detectron2=passed)
        return look(built, {})

    plain, acted = network({}), set()
    assert network({}) == plain
    # It sets the numbers of a bias, which networks without memory do not have; test_retinanet.py has it.
    seen = [(key, value) for key, value in leaves(get_cfg()) if key != "MODEL.RETINANET.PRIOR_PROB"]
    for key, default in seen:
        for value in (one for one in others(default) if one != default):
            try:
                after = network({key: value})
            except ConfigError:
                continue
            assert after != plain, (key, value)
            acted.add(key)
            break
    assert len(acted) > count
    assert not acted & owned(settings).keys()
