"""P39: a setting acts or is refused: changing any key changes what is built, or is an error that names it."""

import contextlib
import functools
import json
import re
import shutil
from pathlib import Path

import pytest
from fingerprint import built
from layout_sets import as_labelme
from networks import TINY
from settings import every_key, merged, nested, smallest
from tiny_runs import TINY_RUNS
from tiny_tasks import write_config, write_weights

from res2net_dense import cli
from res2net_dense.backbones.registry import create_classifier
from res2net_dense.cli._shared import check_options
from res2net_dense.config import config_to_dict, load_config, parse_config
from res2net_dense.config.load import CONFIGS
from res2net_dense.errors import ConfigError, Res2NetDenseError
from res2net_dense.tasks import get_task
from res2net_dense.weight_files import save_weights

KEYS = list(every_key())
SAME = {
    "data.class_names": "names of other classes are an error of the data set",
    "data.keep_empty": "not every set has images without objects",
    "eval.backend": "null is one of the others",
    "model.num_classes": "null counts the classes",
    "model.output_stride": "null is one of the others",
    "train.schedule.name": "multistep without milestones is constant",
}
"""Settings of which one value is that of the default, with the reason; another one acts."""
UNSEEN = {
    "data.channels": "images with other channels are refused; it acts on those of four, in tests/data",
    "model.num_classes": "the data have the classes, and another number is refused; it acts without data",
    "train.fused_block": "needs an NVIDIA GPU, and is refused without",
    "runtime.device": "there is one device here, and others are refused",
    "classification train.optimizer.backbone_lr_factor": "refused, as the head is a part of the network",
}
"""Settings, of all tasks or of one, that cannot be seen to act in a training here, with the reason."""
TRUE_ANYWHERE = [("train.optimizer.norm_weight_decay", None)]
"""Settings that ask for nothing: norms have no weight decay of their own, which is so where none learns."""
METRICS = ["one", "top5", "weighted_F", "bbox/AP50", "pixel_accuracy"]
VALUES = {
    "backbone.name": ["test_resnet", "one"],
    "backbone.weights": ["one", "backbone.safetensors"],
    "data.max_size_test": [1, 200],
    "data.max_size_train": [1, 200],
    "data.tiles.overlap": [40, 50],
    "data.tiles.size": [32, 48],
    "data.train.class_column": ["one", "class"],
    "data.train.file_column": ["one", "file"],
    "data.train.split": ["one", "val"],
    "data.val.class_column": ["one", "class"],
    "data.val.file_column": ["one", "file"],
    "data.val.split": ["one", "train"],
    "model.detectron2": [{"a": 1}, {"MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 0.5}],
    "model.smp": [{"a": 1}, {"decoder_channels": 32}],
    "model.weights": ["one", "model.safetensors"],
    "runtime.device": ["mps"],
    "train.best_metric": METRICS,
    "train.early_stop.metric": METRICS,
    "train.epochs": [2.0],
    "train.iterations": [5],
}
"""Values that tell more than those of the schema alone."""
CONTEXTS = {
    "": {},
    "sgd": {"train": {"optimizer": {"name": "sgd"}}},
    "adam": {"train": {"optimizer": {"name": "adam"}}},
    **{
        f"schedule {name}": {"train": {"schedule": {"name": name}}}
        for name in ("poly", "cosine", "onecycle", "constant")
    },
    "warm-up": {"train": {"schedule": {"name": "multistep", "warmup_iterations": 2, "milestones": [3]}}},
    "epochs": {"train": {"iterations": None, "epochs": 1.0}},
    "early stop": {"train": {"early_stop": {"patience": 1}}},
    "no validation": {"data": {"val": None}, "train": {"eval_every": 0}},
    "tiles": {"data": {"tiles": {"size": 64}}},
    "tiles of the evaluation": {"data": {"tiles": {"size": 64, "train": "none"}}},
    "processes": {"data": {"workers": 1}},
    "repeated": {"data": {"sampling": "repeat_factor", "repeat_threshold": 0.9}},
    "weights": {"backbone": {"weights": "backbone.safetensors"}},
    "resnet": {"backbone": {"name": "test_resnet"}},
    "pools nowhere": {"backbone": {"stage_pool": "strided", "stride_in_1x1": True}},
    "group norm": {"backbone": {"norm": "GN"}},
    "frozen": {"backbone": {"freeze_at": 5}},
    "faster": {"model": {"arch": "faster_rcnn"}},
    "cascade": {"model": {"arch": "cascade_rcnn"}},
    "retinanet": {"model": {"arch": "retinanet"}},
    "unet": {"model": {"arch": "unet"}},
    "fpn": {"model": {"arch": "fpn"}},
    "fpn with a second head": {"model": {"arch": "fpn", "aux_weight": 0.4}},
    "focal": {"model": {"losses": {"cross_entropy": 0.0, "focal": 1.0}}},
    "as they are": {"data": {"size": None}},
    "padded": {"data": {"train_crop": "padded"}},
    "window": {"eval": {"window": 64}},
}
"""Other places to change a setting in; only the keys of their sections are."""
SECTIONS = {"no validation": ["train"], "frozen": ["train"], "weights": ["backbone", "model"]}
"""Those of a place where others act in other commands than a training."""
LAYOUTS = {
    "csv": (
        "classification",
        "imagenet",
        {
            "csv": "{root}/{part}/labels.csv",
            "images": "{root}/{part}",
            "file_column": "filename",
            "class_column": "label",
        },
    ),
    "named folders": (
        "saliency",
        "duts",
        {"root": "{root}/{part}", "images": "images", "masks": "masks", "list": "list.txt"},
    ),
    "voc boxes": ("detection", "voc", {"root": "{root}", "split": "{part}"}),
    "yolo": ("detection", "yolo", {"yaml": "{root}", "split": "{part}"}),
    "images of yolo": ("detection", "yolo", {"yaml": "{root}", "images": "{root}/images"}),
    "labelme": ("detection", "coco", {"layout": "labelme", "root": "{root}/{part}"}),
}
"""Data in other layouts: of which task, the toy set, and the parts."""


@pytest.fixture
def base(draw_toy, tmp_path, monkeypatch):
    """Returns the configuration of a task in a place, on copies of the toy sets."""
    monkeypatch.chdir(tmp_path)

    @functools.cache
    def draw(layout, **numbers):
        root = shutil.copytree(draw_toy(layout, **numbers), tmp_path / layout)
        for folder in (root / "train", root / "val"):
            if layout == "imagenet":
                write_csv(folder)
            elif layout == "duts":
                names = sorted(file.stem for file in (folder / "images").iterdir())
                (folder / "list.txt").write_text("\n".join(names))
        if layout == "coco":
            as_labelme(root)
        return root

    return functools.partial(config_in, draw=draw, folder=tmp_path)


def config_in(task, context, *, draw, folder):
    """The configuration of a task in a place, with every key; raises where the task does not have it."""
    path = write_config(task, draw, folder)
    options = ["train.iterations=8", "train.schedule.warmup_iterations=0", "train.eval_every=2"]
    raw, change = config_to_dict(load_config(path, options)), CONTEXTS.get(context)
    if task == "semantic_segmentation":
        raw["model"]["smp"] = {}  # other architectures do not have the same
    if task == "detection" and Path(raw["data"]["train"]["annotations"]).exists():
        part = raw["data"]["train"]
        part["annotations"] = without_objects(part["annotations"], folder / "train.json")
    if change is None:
        _, toy, part = LAYOUTS[context]
        change = {"model": {"arch": "faster_rcnn"}} if context == "voc boxes" else {}  # it has no masks
        root = draw(**{**TINY_RUNS[task].toy, "layout": toy})
        for name in ("train", "val"):
            raw["data"][name] = {key: value.format(root=root, part=name) for key, value in part.items()}
    return config_to_dict(parse_config(merged(raw, change), saved=True))


@pytest.fixture
def weights(tmp_path):
    """Write weights of a backbone and of a whole model, of a task whose `config.yaml` is there."""

    def write():
        write_weights(tmp_path / "config.yaml", tmp_path / "model.safetensors")
        network = create_classifier(TINY, 10)
        for parameter in network.parameters():
            parameter.data.uniform_(-1, 1)
        save_weights(tmp_path / "backbone.safetensors", network.state_dict(), {})

    return write


def write_csv(folder):
    """The classes of images, and in two other columns those of the next one."""
    names = [str(file.relative_to(folder)) for file in sorted(folder.glob("*/*.png"))]
    rows = [
        f"{name},{Path(name).parent},{after},{Path(after).parent}"
        for name, after in zip(names, names[1:] + names[:1], strict=True)
    ]
    (folder / "labels.csv").write_text("\n".join(["filename,label,file,class", *rows]))


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


def other_values(raw, key):
    """Values that a setting might have instead."""
    given = value_at(raw, key.path)
    if key.name == "data.class_names" and given is None and key.task != "saliency":
        yield get_task(key.task).prepare(parse_config(raw)).data.class_names[::-1]
    if key.path[0] == "data" and len(key.path) == 3 and isinstance(given, str):
        part = value_at(raw, key.path[:-1])
        for path in (Path(given), Path(part.get("root", ""), given)):
            other = path.with_name(f"other_{path.name}")
            if path.exists():
                if not other.exists():
                    (shutil.copytree if path.is_dir() else shutil.copy)(path, other)
                    for file in sorted(other.glob("*.xml"))[::5]:  # an equal one would change nothing
                        file.write_text(file.read_text().replace("<difficult>0<", "<difficult>1<"))
                yield str(Path(given).with_name(other.name))
                break
    for value in VALUES.get(key.name, key.values):
        if value != given and str(value) != str(given):
            yield value


def changed(raw, keys, *, values=2):
    """Change each setting to some of its values.

    Returns:
        The settings with values that changed nothing, or whose error does not name them; and the names of
        those that acted.
    """
    before, silent, acted = built(parse_config(raw)), [], set()
    assert built(parse_config(raw)) == before
    for key in keys:
        count = 0
        for value in other_values(raw, key):
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


def places(task, base):
    """Yield each place that a task has: its name, its configuration, and the settings of its sections."""
    for context, change in (CONTEXTS | dict.fromkeys(LAYOUTS, ("data", "eval"))).items():
        if context in LAYOUTS and LAYOUTS[context][0] != task:
            continue
        try:
            raw = base(task, context)
        except Res2NetDenseError:
            continue  # not of this task
        sections = SECTIONS.get(context, change) or CONFIGS[task].model_fields
        yield context, raw, [k for k in KEYS if k.task == task and fits(k, raw) and k.path[0] in sections]


def should_act(task):
    """The names of the settings of a task with more than one value, without those that cannot be seen."""
    names = {key.name for key in KEYS if key.task == task and len(key.values) > 1}
    return {name for name in names if not {name, f"{task} {name}"} & UNSEEN.keys()}


def test_the_settings_of_a_training_act_or_are_refused(base):
    raw = base("classification", "")
    keys = [key for key in KEYS if key.task == "classification" and key.path[0] in ("data", "train", "eval")]
    keys = [key for key in keys if fits(key, raw)]
    silent, acted = changed(raw, keys, values=1)
    assert silent == []
    assert len(acted) > 30


@pytest.mark.parametrize(
    ("task", "change", "choice"),
    [
        ("semantic_segmentation", "model.norm=GN", "model.arch=fpn"),
        ("semantic_segmentation", "train.optimizer.backbone_lr_factor=0.1", "backbone.freeze_at=5"),
        ("detection", "data.val.split=test", "data.val.images=b"),
    ],
)
def test_a_later_choice_leaves_out_what_it_makes_idle(task, change, choice):
    raw = merged(smallest(task), {"data": {"val": {"yaml": "a"}}} if task == "detection" else {})
    name = change.partition("=")[0]
    with pytest.raises(ConfigError, match=f"{name} = .*has no effect with"):
        parse_config(raw, overrides=[choice, change])
    path = tuple(name.split("."))
    before = parse_config(raw, overrides=[change])
    base = merged(raw, nested(path, value_at(config_to_dict(before), path)))
    after = parse_config(base, overrides=[choice])
    assert value_at(config_to_dict(after), path) == value_at(config_to_dict(parse_config(raw)), path)


@pytest.mark.parametrize("task", CONFIGS)
def test_every_setting_has_a_place_to_act_in(task, tmp_path):
    """Whether it does there takes minutes to find out."""
    left = should_act(task)
    nowhere = functools.partial(config_in, draw=lambda layout, **_: tmp_path / layout, folder=tmp_path)
    for _, raw, keys in places(task, nowhere):
        for key in (one for one in keys if one.name in left):
            for value in VALUES.get(key.name, key.values):
                with contextlib.suppress(ConfigError):
                    parse_config(merged(raw, nested(key.path, value)))
                    left.discard(key.name)
                    break
    assert left == set()


@pytest.mark.parametrize("task", CONFIGS)
@pytest.mark.slow
def test_every_setting_acts_or_is_refused_in_every_place(task, base, weights):
    silent, left = {}, should_act(task)
    for context, raw, keys in places(task, base):
        if context == "":
            weights()
        found, acted = changed(raw, keys, values=1 if context else 2)
        found = [one for one in found if one not in TRUE_ANYWHERE]
        silent |= {context: found} if found else {}
        left -= acted
    assert silent == {}
    assert left == set()


# Options of commands

ALONE = {
    "demo": "--output --data --overwrite",
    "train": "--config --output-dir --weights --auto --auto-batch --resume --eval-only --dry-run",
    "lr-find": "--config --iterations --first --last --output --overwrite",
    "evaluate": "--config --output-dir --weights --save-predictions --overwrite --split --precision",
    "predict": "--config --weights --input --output --score --save --annotations --continue --overwrite",
    "export": "--config --weights --output --format --size --batch --dynamic --eval --overwrite",
    "average": "--output --overwrite",
    "convert": "--to --from --prefix --report --partial --trust-pickle",
    "classify": "--model --weights --top --json --trust-pickle",
    "score-saliency": "--predictions --masks --json --plot --workers --no-rescale --resize",
    "benchmark": (
        "--model --config --batch --size --formats --dtypes --against --train --repeats --warmup --json"
    ),
    "check": "--config --layout --notes --json --html --fix-list --statistics --workers",
    "doctor": "--models",
    "toy": "--output --layout --seed --overwrite --train --val --size",
    "split": "--val --output --seed --overwrite",
    "prepare-duts": "--root --list --images --masks --name --output --check --against --workers",
    "prepare-voc-aug": "--voc --sbd --output --overwrite",
}
"""Options that act without another one, or are refused by the command itself where they do not."""


def options(command):
    parser = cli.parser_of(command, cli.load(command))
    return parser, {one.option_strings[0]: one for one in parser._actions if one.option_strings}


NEEDY = [
    (command, name, one)
    for command in cli.COMMANDS
    for name, option in options(command)[1].items()
    for one in getattr(option, "only_with", ())
]


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_option_of_a_command_acts_alone_or_says_what_it_needs(command):
    _, found = options(command)
    needy = {name for place, name, _ in NEEDY if place == command}
    assert sorted([*needy, *ALONE[command].split(), "-h", "--debug"]) == sorted(found)


def given(option):
    return [*option.option_strings[:1], *([] if option.nargs == 0 else [next(iter(option.choices or "1"))])]


@pytest.mark.parametrize(("command", "name", "other"), NEEDY)
def test_an_option_without_what_it_needs_is_refused(command, name, other, capsys):
    parser, found = options(command)
    needed = [one for one in parser._actions if one.required]
    needed += [group._group_actions[0] for group in parser._mutually_exclusive_groups if group.required]
    words = [word for one in needed for word in given(one)] + given(found[name])
    assert cli.main([command, *words]) == 1
    assert re.search(rf"error: {name} goes with .*{other}.* no effect", capsys.readouterr().err)
    while other not in words:
        words += [other, *given(found[other])[1:]] if other in found else [other]
        other = next(iter(getattr(found.get(other), "only_with", ())), other)
    check_options(parser, parser.parse_intermixed_args(words))


@pytest.mark.parametrize(
    "words",
    [
        ["train", "runtime.output_dir=b", "--config", "quick/sod_res2net50", "--output-dir", "a"],
        ["train", "model.weights=b", "--config", "quick/sod_res2net50", "--weights", "a"],
        ["evaluate", "runtime.output_dir=b", "--weights", "a", "--output-dir", "a"],
        ["benchmark", "backbone.name=test_resnet", "--model", "test_res2net"],
    ],
)
def test_an_option_and_an_override_of_the_same_setting_are_refused(words, capsys):
    assert cli.main(words) == 1
    assert f"and '{words[1]}' set the same" in capsys.readouterr().err
