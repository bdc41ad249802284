"""P39: a setting acts or is refused: changing any key changes what is built, or is an error that names it."""

import pytest
from fingerprint import built
from settings import every_key, merged, nested
from tiny_tasks import write_config

from res2net_dense.config import config_to_dict, load_config, parse_config
from res2net_dense.config.load import CONFIGS
from res2net_dense.errors import Res2NetDenseError

KEYS = list(every_key())
EXCEPTIONS = {}
"""Settings that may have no effect, with the reason."""
VALUES = {
    "backbone.name": ["test_resnet", "one"],
    "data.tiles.size": [32, 48],
    "runtime.device": ["mps"],
    "train.iterations": [5],
    "train.best_metric": ["one"],
}
"""Values that tell more than those of the schema alone."""
CONTEXTS = {
    "": {},
    "adam": {"train": {"optimizer": {"name": "adam"}}},
    **{
        f"schedule {name}": {"train": {"schedule": {"name": name}}}
        for name in ("poly", "cosine", "onecycle", "constant")
    },
    "warm-up": {"train": {"schedule": {"name": "multistep", "warmup_iterations": 2, "milestones": [3]}}},
    "no validation": {"data": {"val": None}},
    "tiles": {"data": {"tiles": {"size": 64}}},
    "tiles of the evaluation": {"data": {"tiles": {"size": 64, "train": "none"}}},
    "weights": {"backbone": {"norm": "GN"}},
    "faster": {"model": {"arch": "faster_rcnn"}},
    "unet": {"model": {"arch": "unet"}},
    "fpn": {"model": {"arch": "fpn"}},
    "as they are": {"data": {"size": None}},
    "padded": {"data": {"train_crop": "padded"}},
    "window": {"eval": {"window": 64}},
}


@pytest.fixture(scope="module")
def base(draw_toy, tmp_path_factory):
    def make(task, context):
        folder = tmp_path_factory.mktemp("base")
        path = write_config(task, draw_toy, folder)
        plain = config_to_dict(
            load_config(
                path, ["train.iterations=8", "train.schedule.warmup_iterations=0", "train.eval_every=2"]
            )
        )
        change = merged(plain, CONTEXTS[context])
        return config_to_dict(parse_config(change, saved=True))

    return make


def fits(key, config):
    """Whether a configuration has the form that a key belongs to."""
    for path, tag in key.tags.items():
        section = config
        for part in path:
            section = section.get(part) if isinstance(section, dict) else None
        if section != tag:
            return False
    section = config
    for part in key.path[:-1]:
        section = section.get(part) if isinstance(section, dict) else None
    return isinstance(section, dict)


def value_at(config, path):
    for part in path:
        config = config[part]
    return config


def silent(task, raw, keys, *, values=2):
    """The settings whose change changed nothing, without a word."""
    before, found = built(parse_config(raw)), []
    assert built(parse_config(raw)) == before
    for key in keys:
        if key.task != task or not fits(key, raw) or key.name in EXCEPTIONS:
            continue
        given = value_at(raw, key.path)
        others = [
            one
            for one in VALUES.get(key.name, key.values)
            if one != given and [*map(str, [one])] != [str(given)]
        ]
        acted = 0
        for value in others:
            try:
                after = built(parse_config(merged(raw, nested(key.path, value))))
            except Res2NetDenseError as error:
                names = (key.name, key.path[-1], str(value))
                if not any(name in str(error) for name in names):
                    found.append((key.name, value, str(error)))
                continue
            if after == before:
                found.append((key.name, value))
            acted += 1
            if acted == values:
                break
    return found


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("task", CONFIGS)
@pytest.mark.slow
def test_every_setting_acts_or_is_refused(task, context, base):
    try:
        raw = base(task, context)
    except Res2NetDenseError:
        pytest.skip("not of this task")
    assert silent(task, raw, KEYS) == []
