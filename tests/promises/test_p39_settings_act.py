"""P39: a setting acts or is refused: changing any key changes what is built, or is an error that names it."""

import json
from pathlib import Path

import pytest
from fingerprint import built
from settings import every_key, merged, nested
from tiny_tasks import write_config

from res2net_dense.config import config_to_dict, load_config, parse_config
from res2net_dense.config.load import CONFIGS
from res2net_dense.errors import Res2NetDenseError

KEYS = list(every_key())
SAME = {
    "data.class_names": "names of other classes are an error of the data set",
    "eval.backend": "null is one of the others",
    "model.num_classes": "null counts the classes",
    "model.output_stride": "null is one of the others",
    "train.schedule.name": "multistep without milestones is constant",
}
"""Settings of which one value is that of the default, with the reason; another one acts."""
IDLE = {
    ("fpn", "model.norm"): "smp's FPN has group norm alone; it acts on the second head only",
}
"""Settings without effect in a place, with the reason."""
VALUES = {
    "backbone.name": ["test_resnet", "one"],
    "data.tiles.overlap": [40, 50],
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
    "early stop": {"train": {"early_stop": {"patience": 1}}},
    "no validation": {"data": {"val": None}, "train": {"eval_every": 0}},
    "tiles": {"data": {"tiles": {"size": 64}}},
    "tiles of the evaluation": {"data": {"tiles": {"size": 64, "train": "none"}}},
    "processes": {"data": {"workers": 1}},
    "repeated": {"data": {"sampling": "repeat_factor", "repeat_threshold": 0.9}},
    "resnet": {"backbone": {"name": "test_resnet"}},
    "group norm": {"backbone": {"norm": "GN"}},
    "faster": {"model": {"arch": "faster_rcnn"}},
    "unet": {"model": {"arch": "unet"}},
    "fpn": {"model": {"arch": "fpn"}},
    "focal": {"model": {"losses": {"cross_entropy": 0.0, "focal": 1.0}}},
    "as they are": {"data": {"size": None}},
    "padded": {"data": {"train_crop": "padded"}},
    "window": {"eval": {"window": 64}},
}
"""Other places to change a setting in; only the keys of their sections are."""
SECTIONS = {"no validation": ["train"]}
"""Those of a place where others act in other commands than a training."""


@pytest.fixture
def base(draw_toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def make(task, context):
        path = write_config(task, draw_toy, tmp_path)
        options = ["train.iterations=8", "train.schedule.warmup_iterations=0", "train.eval_every=2"]
        plain = config_to_dict(load_config(path, options))
        if task == "semantic_segmentation":
            plain["model"]["smp"] = {}  # other architectures do not have the same
        if task == "detection":
            part = plain["data"]["train"]
            part["annotations"] = without_objects(part["annotations"], tmp_path / "train.json")
        return config_to_dict(parse_config(merged(plain, CONTEXTS[context]), saved=True))

    return make


def without_objects(annotations, path):
    """Write annotations whose first image has no objects."""
    content = json.loads(Path(annotations).read_text())
    empty = content["images"][0]["id"]
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] != empty]
    path.write_text(json.dumps(content))
    return str(path)


def fits(key, config):
    """Whether a configuration has the form that a key belongs to."""
    for path, tag in key.tags.items():
        if value_at(config, path) != tag:
            return False
    return isinstance(value_at(config, key.path[:-1]), dict)


def value_at(config, path):
    for part in path:
        config = config.get(part) if isinstance(config, dict) else None
    return config


def changed(raw, keys, *, values=2):
    """Change each setting to some of its values.

    Returns:
        The settings with values that changed nothing, or whose error does not name them; and the names of
        those that acted.
    """
    before, silent, acted = built(parse_config(raw)), [], set()
    assert built(parse_config(raw)) == before
    for key in keys:
        given, count = value_at(raw, key.path), 0
        for value in VALUES.get(key.name, key.values):
            if value == given or str(value) == str(given):
                continue
            try:
                after = built(parse_config(merged(raw, nested(key.path, value))))
            except Res2NetDenseError as error:
                if not any(name in str(error) for name in (key.name, key.path[-1], str(value))):
                    silent.append((key.name, value, str(error)))
                continue
            if after == before:
                silent.append((key.name, value))
                continue
            acted.add(key.name)
            count += 1
            if count == values:
                break
    return [one for one in silent if one[0] not in SAME], acted


def test_the_settings_of_a_training_act_or_are_refused(base):
    raw = base("classification", "")
    keys = [key for key in KEYS if key.task == "classification" and key.path[0] in ("data", "train", "eval")]
    keys = [key for key in keys if fits(key, raw)]
    silent, acted = changed(raw, keys, values=1)
    assert silent == []
    assert len(acted) > 30


@pytest.mark.parametrize("task", CONFIGS)
@pytest.mark.slow
def test_every_setting_acts_or_is_refused_in_every_place(task, base):
    silent = {}
    for context, change in CONTEXTS.items():
        try:
            raw = base(task, context)
        except Res2NetDenseError:
            continue  # not of this task
        sections = SECTIONS.get(context, change) or CONFIGS[task].model_fields
        keys = [key for key in KEYS if key.task == task and fits(key, raw) and key.path[0] in sections]
        found, _ = changed(raw, keys, values=1 if change else 2)
        found = [one for one in found if (context, one[0]) not in IDLE]
        silent |= {context: found} if found else {}
    assert silent == {}
