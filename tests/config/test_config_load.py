"""Reading configuration files: what is merged, what is refused, and what the messages say."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from res2net_dense.config import config_to_dict, load_config, parse_config, save_config
from res2net_dense.data.layouts import CifarPart, ClassFoldersPart, CocoPart, VocBoxesPart
from res2net_dense.data.layouts.voc_boxes import VOC_CLASSES
from res2net_dense.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"
SHIPPED = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name != "_base_")

TEXT = """\
task: detection
backbone: {name: res2net50_26w_4s}
model: {arch: mask_rcnn}
train:
  iterations: 100
  batch_size: 4
  optimizer:
    lr: 0.02
"""
COCO = "{images: a, annotations: b}"
VOC = "{root: c, split: d}"
YOLO = "{yaml: e, split: f}"
LABELME = "{layout: labelme, root: g}"


@pytest.fixture
def write(tmp_path):
    """Write a configuration; returns its path."""

    def write(text, name="x.yaml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def message(path, *overrides):
    with pytest.raises(ConfigError) as error:
        load_config(path, overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


# What the package ships


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_shipped_configs_load_and_come_back_equal(path, tmp_path):
    config = load_config(path)
    save_config(config, tmp_path / "copy.yaml")
    assert load_config(tmp_path / "copy.yaml") == config
    assert parse_config(config_to_dict(config)) == config
    assert os.listdir(tmp_path) == ["copy.yaml"]


def test_shipped_configs_exist():
    assert len(SHIPPED) >= 10


@pytest.mark.parametrize(
    ("name", "values"),
    [
        (
            "mask_rcnn_res2net50",
            {
                "backbone.freeze_at": 2, "backbone.norm": "FrozenBN", "backbone.weights": "imagenet",
                "train.iterations": 180_000, "train.batch_size": 16,
                "train.schedule.milestones": [120_000, 160_000], "train.schedule.warmup_iterations": 1000,
                "train.optimizer.lr": 0.02, "train.optimizer.weight_decay": 1e-4,
                "data.min_size_train": list(range(640, 801, 32)),
            },
        ),
        *(
            (
                f"deeplabv3plus_res2net{depth}_voc",
                {
                    "backbone.name": f"res2net{depth}_26w_4s", "model.arch": "deeplabv3plus",
                    "model.num_classes": 21, "model.output_stride": 16, "data.train.split": "trainaug",
                    "data.val.split": "val", "data.class_names": ["background", *VOC_CLASSES],
                    "data.crop_size": 513, "data.scale": [0.5, 2.0], "data.flip": 0.5,
                    "train.iterations": 30_000, "train.batch_size": 16, "train.schedule.name": "poly",
                    "train.schedule.power": 0.9, "eval.scales": [1.0], "eval.flip": False,
                    "eval.window": None,
                },
            )
            for depth in (50, 101)
        ),
    ],
)  # fmt: skip
def test_the_published_recipes(name, values):
    config = config_to_dict(load_config(name))
    for path, value in values.items():
        found = config
        for key in path.split("."):
            found = found[key]
        assert found == value, path


@pytest.mark.parametrize(
    ("name", "images", "batch", "epochs", "milestones"),
    [
        ("classification_res2net50_imagenet", 1_281_167, 256, 100, [30, 60, 90]),
        ("classification_res2net50_v1b_imagenet", 1_281_167, 256, 300, [75, 150, 225]),
        ("classification_res2next29_cifar100", 50_000, 128, 300, [150, 225]),
    ],
)
def test_published_recipes_in_epochs(name, images, batch, epochs, milestones):
    train = load_config(name).train
    assert train.batch_size == train.reference_batch == batch
    assert train.optimizer.lr == 0.1
    assert train.iterations * batch / images == pytest.approx(epochs, abs=3e-3)
    done = [step * batch / images for step in train.schedule.milestones]
    assert done == pytest.approx(milestones, abs=3e-3)


@pytest.mark.parametrize("depth", [50, 101])
def test_retinanet_is_trained_as_detectron2s(depth):
    model_zoo = pytest.importorskip("detectron2.model_zoo")
    theirs = model_zoo.get_config("COCO-Detection/retinanet_R_50_FPN_1x.yaml")
    config, solver = load_config(f"retinanet_res2net{depth}"), theirs.SOLVER
    assert config.backbone.name == f"res2net{depth}_v1b_26w_4s"
    assert config.model.arch == "retinanet"
    train = config.train
    assert (train.iterations, train.batch_size) == (solver.MAX_ITER, solver.IMS_PER_BATCH)
    assert (train.optimizer.lr, train.optimizer.weight_decay) == (solver.BASE_LR, solver.WEIGHT_DECAY)
    assert tuple(train.schedule.milestones) == solver.STEPS
    assert train.schedule.warmup_iterations == solver.WARMUP_ITERS
    assert tuple(config.data.min_size_train) == theirs.INPUT.MIN_SIZE_TRAIN


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("depth", [50, 101])
def test_the_cascades_are_trained_as_mmdetections(depth, mask):
    """Its `schedule_20e`, on the 117,266 images of COCO that have objects."""
    config = load_config(f"cascade_{'mask_' if mask else ''}rcnn_res2net{depth}")
    assert config.backbone.name == f"res2net{depth}_v1b_26w_4s"
    assert config.model.arch == f"cascade_{'mask_' if mask else ''}rcnn"
    assert config.model.cascade_ious == [0.5, 0.6, 0.7]
    assert (config.data.min_size_train, config.data.max_size_train) == ([800], 1333)
    train = config.train
    assert (train.batch_size, train.optimizer.lr, train.optimizer.weight_decay) == (16, 0.02, 1e-4)
    epochs = [steps * 16 / 117_266 for steps in (*train.schedule.milestones, train.iterations)]
    assert epochs == pytest.approx([16, 19, 20], abs=0.01)


@pytest.mark.parametrize(
    ("name", "images", "steps", "milestones"),
    [("voc07", 5_011, 5_400, [3_600, 4_800]), ("voc0712", 16_551, 18_000, [12_000, 16_000])],
)
def test_the_voc_recipes(name, images, steps, milestones):
    config = load_config(f"faster_rcnn_res2net50_{name}")
    assert config.eval.method == "11point"
    assert tuple(config.data.class_names) == VOC_CLASSES
    assert [(Path(part.root).name, part.split) for part in config.data.train] == (
        [("VOC2007", "trainval"), ("VOC2012", "trainval")][: 1 + (name == "voc0712")]
    )
    assert [(Path(part.root).name, part.split) for part in config.data.val] == [("VOC2007", "test")]
    assert (config.train.iterations, config.train.schedule.milestones) == (steps, milestones)
    assert steps * config.train.batch_size / images == pytest.approx(17.3, abs=0.2)  # epochs


# Values


@pytest.mark.parametrize("value", ["1e-4", "1E-4", "0.0001", ".0001", "+1.e-4", "100e-6"])
def test_numbers_as_people_write_them(value, write):
    path = write(TEXT.replace("0.02", value))
    assert load_config(path).train.optimizer.lr == pytest.approx(1e-4)
    assert load_config(path, [f"train.optimizer.lr={value}"]).train.optimizer.lr == pytest.approx(1e-4)


@pytest.mark.parametrize("word", ["no", "yes", "on", "off", "NO", "y", "1:30", "1_000", "2020-01-01", "<<"])
def test_words_stay_words(word, write):
    path = write(TEXT + f"runtime: {{output_dir: {word}}}\ndata: {{class_names: [{word}]}}\n")
    config = load_config(path)
    assert config.runtime.output_dir == word
    assert config.data.class_names == [word]
    assert "train.compile = 'no'" in message(path, "train.compile=no")


@pytest.mark.parametrize(
    "word", ["1e-4", "1E5", "null", "~", "true", "010", "0o17", "no", ".inf", "a: b", "#", "é\n", " "]
)
def test_saved_strings_stay_strings(word, write):
    data = config_to_dict(load_config(write(TEXT)))
    data["data"]["class_names"] = [word]
    data["model"]["detectron2"] = {word: [word, 1, 1e-5, None, True, {"x": 10**30}]}
    config = parse_config(data)
    save_config(config, write("", "saved.yaml"))
    assert load_config(write(TEXT).with_name("saved.yaml")) == config


def test_paths_may_start_at_the_home_folder(write, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(TEXT, "base.yaml")
    write(
        "_base_: ~/base.yaml\nbackbone: {weights: ~/w.pth}\nruntime: {output_dir: ~/run}\n"
        "data: {train: {images: ~/a, annotations: ~/b.json}, val: [{root: ~/c, split: null}]}\n"
    )
    config = load_config("~/x.yaml", ["runtime.output_dir=~/other"])
    train, val = config.data.train[0], config.data.val[0]
    paths = config.backbone.weights, config.runtime.output_dir, train.images, train.annotations, val.root
    assert paths == tuple(f"{tmp_path}/{name}" for name in ("w.pth", "other", "a", "b.json", "c"))
    data = {**config_to_dict(config), "task": "classification", "model": {}, "eval": {}}
    data["data"] = {"train": "~/a", "val": {"root": "~/b", "layout": "cifar10"}}
    data = parse_config(data).data
    assert (data.train[0].root, data.val[0].root) == (f"{tmp_path}/a", f"{tmp_path}/b")
    assert message("~/y.yaml").startswith(f"{tmp_path}/y.yaml: no such file in {tmp_path}; nearest there: x")


def test_save_leaves_the_old_file_when_it_fails(write, tmp_path, monkeypatch):
    config = load_config(write(TEXT))

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ConfigError, match="No space left"):
        save_config(config, tmp_path / "x.yaml")
    assert (tmp_path / "x.yaml").read_text() == TEXT
    assert os.listdir(tmp_path) == ["x.yaml"]
    with pytest.raises(ConfigError, match="cannot be written"):
        save_config(config, tmp_path / "absent" / "x.yaml")


# Files that build on others


def test_bases_merge_and_lists_replace(write):
    write("data: {min_size_train: [1, 2, 3], flip: 0.1}\ntrain: {iterations: 5}\n", "a.yaml")
    write("_base_: a.yaml\ndata: {min_size_train: [7]}\n", "b.yaml")
    write("data: {flip: 0.3}\n", "c.yaml")
    config = load_config(write("_base_: [b.yaml, c.yaml]\n" + TEXT))
    assert (config.data.min_size_train, config.data.flip, config.train.iterations) == ([7], 0.3, 100)


def test_the_place_is_the_file_of_the_key(write):
    base = write("# comment\ntrain:\n  batchsize: 5\n", "a.yaml")
    path = write("_base_: a.yaml\n" + TEXT)
    assert message(path).startswith(
        f"{base}:3: unknown key 'train.batchsize'; did you mean 'train.batch_size'? "
        "Known keys of 'train': iterations, epochs, batch_size,"
    )
    write("train:\n  compile: 3\n", "a.yaml")
    assert message(path).startswith(f"{base}:2: train.compile = 3: ")


def test_a_base_may_be_a_shipped_configuration(write):
    data = "data: {train: {images: a, annotations: a.json}}\n"
    config = load_config(write("_base_: small/mask_rcnn_res2net50\n" + data))
    shipped = load_config("small/mask_rcnn_res2net50")
    assert (config.model, config.train) == (shipped.model, shipped.train)
    assert config.data.train[0].annotations == "a.json"


def test_bases_in_a_circle_and_absent_ones(write):
    write("_base_: [a.yaml]\n", "b.yaml")
    assert "circle: a.yaml -> b.yaml -> a.yaml" in message(write("_base_: b.yaml\n", "a.yaml"))
    path = write("_base_: x.yaml\n")
    assert "circle" in message(path)
    write("\n_base_: aa.yaml\n")
    assert message(path).startswith(f"{path}:2: _base_: ")
    assert "nearest there: a.yaml" in message(path)
    for wrong in ("{a: 1}", "[1]"):
        assert f"{path}:1: _base_ = " in message(write(f"_base_: {wrong}\n"))
        assert "expected a path" in message(path)


# What is wrong with a file


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "size: 4",
            "size: four",
            "{path}:6: train.batch_size = 'four': should be a valid integer > 0, <= 100000$",
        ),
        ("size: 4", "size: 4.0", "train.batch_size = 4.0: "),
        ("size: 4", "size: '4'", "train.batch_size = '4': "),
        ("size: 4", "size: true", "train.batch_size = True: "),
        ("size: 4", "size: -4", "train.batch_size = -4: should be greater than 0"),
        ("  iterations: 100\n", "", "{path}:4: train.iterations = None: set it, or train.epochs$"),
        # A typo is reported before what it leaves missing.
        (
            "iterations",
            "iteration",
            "{path}:5: unknown key 'train.iteration'; did you mean 'train.iterations'?",
        ),
        ("batch_size", "batch", "(and 1 more: train.batch_size)$"),
        ("0.02\n", "0.02\n    lr: 3\n", "{path}:9: duplicate key 'train.optimizer.lr', first on line 8$"),
        ("  batch_size", "\tbatch_size", "{path}:6: "),  # tabs have a line
        (TEXT, "", "{path}: task is missing"),
        (TEXT, "", "(and 3 more: backbone, model, train)"),
        (TEXT, "- a\n", "expected a mapping"),
        (TEXT, "word", "expected a mapping"),
        (TEXT, TEXT + "---\na: 1\n", "a single document"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(old, new, expected, write):
    path = write(TEXT.replace(old, new))
    said, expected = message(path), expected.format(path=path)
    if expected.startswith(str(path)):
        assert said.startswith(expected.removesuffix("$"))
    assert said.endswith(expected[:-1]) if expected.endswith("$") else expected in said


def test_files_that_are_no_text_or_not_there(write, tmp_path):
    path = write(b"task: detection\na: \xff\n")
    assert message(path) == f"{path}:2: not UTF-8 text"
    assert message(tmp_path).endswith("is a folder")
    (tmp_path / "config.yaml").write_text("")
    assert message(tmp_path).endswith(f"is a folder: name the file, such as {tmp_path}/config.yaml")
    (tmp_path / "config.yaml").unlink()
    assert "does not exist" in message(tmp_path / "no" / "x.yaml")
    assert f"no such file in {tmp_path}; nearest there: x.yaml" in message(tmp_path / "xx.yaml")
    assert load_config(write(b"\xef\xbb\xbf" + TEXT.encode())).task == "detection"  # a byte order mark


def test_aliases_in_moderation(write):
    config = load_config(write(f"{TEXT}data:\n  train: &split {COCO}\n  val: *split\n"))
    assert config.data.train == config.data.val


# Overrides


def test_overrides(write):
    path = write(f"{TEXT}data: {{train: {COCO}, min_size_train: [1, 2]}}\n")
    overrides = [
        "train.batch_size=2",
        "train.batch_size = 8",
        "data.train=null",
        "data.min_size_train=[5]",
        "backbone={norm: GN}",
        "eval.expected.segm/AP=[35.6, 0.2]",
        "model.detectron2.MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA=0.5",
        "runtime.output_dir=a=b",
    ]
    config = load_config(path, overrides)
    assert (config.train.batch_size, config.data.train, config.data.min_size_train) == (8, None, [5])
    assert (config.backbone.name, config.backbone.norm) == ("res2net50_26w_4s", "GN")
    assert config.eval.expected == {"segm/AP": (35.6, 0.2)}
    assert config.model.detectron2 == {"MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 0.5}
    assert config.runtime.output_dir == "a=b"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.batch_size", "expected key.path=value"),
        ("=3", "expected key.path=value"),
        ("train..x=3", "expected key.path=value"),
        ("train.batchsize=3", "did you mean 'train.batch_size'?"),
        ("train.batch_size.x=3", "train.batch_size = {'x': 3}"),
        ("data.min_size_train.0=3", "data.min_size_train = {'0': 3}"),
        ("train.batch_size=x", "train.batch_size = 'x': should be a valid integer > 0, <= 100000"),
        ("train.accumulate=3", "train.accumulate = 3: must divide batch_size = 4"),
        ("train.iterations=[1", "expected"),
        ("train=3", "train = 3"),
        ("_base_=x.yaml", "unknown key '_base_'"),
        ("a\nb=3", "unknown key"),
        ("<a=3", "unknown key '<a'"),
        ("train.optimizer.betas=[0.5]", "train.optimizer.betas[1] is missing"),
        ("a=\udcff", "not allowed"),
        # keys that are elsewhere
        ("train.lr=1", "unknown key 'train.lr'; did you mean 'train.optimizer.lr'?"),
        ("batch_size=1", "unknown key 'batch_size'; did you mean"),
        ("zzz=1", "Known keys at the top: task, backbone"),
        ("data.train.img=1", "Known keys of 'data.train': layout, images, annotations"),
        # parts of the data
        ("data.train={images: set #2, annotations: b}", "quote texts with # or a comma"),
        ("data.train=[]", "data.train = []"),
        ("data.train=a/b", "data.train = 'a/b': expected the keys of a layout, such as {root: a/b}"),
        ("data.train=[{split: x}]", "data.train[0].root is missing"),
        ("data.train={root: a}", "data.train.split is missing"),
        ("data.train={split: a}", "data.train.root is missing"),
        ("data.train=[{root: a, splitt: x}]", "did you mean 'data.train[0].split'?"),
        ("data.train={root: a, split: 3}", "data.train.split = 3"),
        ("data.train={images: a}", "data.train.annotations is missing"),
        ("data.train={images: a, annotation: b}", "did you mean 'data.train.annotations'?"),
        ("data.train={layout: voc, root: a}", "layout = 'voc': expected one of 'coco', 'voc-boxes'"),
        ("data.train={layout: coco, root: a, split: b}", "unknown key 'data.train.root'"),
        (f"data.train=[{COCO}, {COCO}]", "the layout coco takes one part, not 2"),
        (f"data.train=[{COCO}, {VOC}]", "must have one layout, not coco and voc-boxes"),
    ],
)
def test_wrong_overrides(override, said, write):
    text = message(write(TEXT), override)
    assert text.startswith("override ")
    assert said in text
    assert "data.train.coco" not in text  # the tag of a layout is not a key


def test_parts_of_both_layouts(write):
    path = write(TEXT)
    data = load_config(path, [f"data.train={COCO}", f"data.val={VOC}"]).data
    assert data.train == [CocoPart(images="a", annotations="b")]
    assert data.val == [VocBoxesPart(root="c", split="d")]
    assert [part.layout for part in (*data.train, *data.val)] == ["coco", "voc-boxes"]
    said = load_config(path, ["data.train={layout: coco, images: a, annotations: b}"])
    assert said.data.train == data.train
    joined = load_config(path, ["data.train=[{root: a, split: x}, {root: b, split: null, images: y}]"])
    assert [(part.root, part.split, part.images) for part in joined.data.train] == [
        ("a", "x", "JPEGImages"),
        ("b", None, "y"),
    ]
    for config in (said, joined):
        assert parse_config(config_to_dict(config)) == config
    # One part is saved without its list, so that overrides reach its keys.
    assert config_to_dict(said)["data"]["train"] == {"layout": "coco", "images": "a", "annotations": "b"}


def test_parts_of_classification(write):
    text = TEXT.replace("task: detection", "task: classification").replace("model: {arch: mask_rcnn}\n", "")
    path = write(text)
    folders = load_config(path, ["data.train=a", "data.val={root: b}"]).data
    assert (folders.train, folders.val) == ([ClassFoldersPart(root="a")], [ClassFoldersPart(root="b")])
    cifar = load_config(path, ["data.train=a", "data.val={root: b}", "data.format=cifar10"])
    assert cifar.data.train == [CifarPart(layout="cifar10", root="a")]
    assert cifar.data.val == [CifarPart(layout="cifar10", root="b")]
    assert load_config(path, ["data.train={layout: cifar10, root: a}"]).data.train == cifar.data.train
    assert parse_config(config_to_dict(cifar)) == cifar
    said = message(path, "data.format=tar")
    assert "data.format = 'tar': expected 'folder', 'cifar10' or 'cifar100'" in said
    assert "expected one of 'class-folders'" in message(path, "data.train={layout: coco, root: a}")


@pytest.mark.parametrize(
    ("below", "above"), [(COCO, VOC), (VOC, COCO), (COCO, YOLO), (YOLO, VOC), (VOC, LABELME)]
)
def test_a_split_of_the_other_layout_takes_the_place_of_one(below, above, write):
    """Half of each would name folders that are in neither."""
    base = write(f"{TEXT}data: {{train: {below}}}\n", "base.yaml")
    expected = load_config(write(TEXT, "plain.yaml"), [f"data.train={above}"])
    assert load_config(write(f"_base_: base.yaml\ndata: {{train: {above}}}\n")) == expected
    assert load_config(base, [f"data.train={above}"]) == expected


def test_keys_of_one_layout_merge(write):
    path = write(f"{TEXT}data: {{train: {VOC}}}\n")
    (part,) = load_config(path, ["data.train.split=x", "data.train.images=y"]).data.train
    assert (part.root, part.split, part.images) == ("c", "x", "y")


def test_a_key_in_a_list_is_refused(write):
    """It would take the place of the list, and a part of the data would be gone without a word."""
    path = write(f"{TEXT}data: {{train: [{VOC}, {VOC}]}}\n")
    said = message(path, "data.train.root=x")
    assert "data.train is a list; give it whole: 'data.train=[...]'" in said


PIECES = st.sampled_from(
    list("{}[]:,-#&*!|>'\"%@`\t\n ~?")
    + ["<<", "&a", "*a", "!!", "---", "...", "null", "1e400", "-1", "\x00", "é", "\ufeff"]
)
EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 6), PIECES | st.text(max_size=4)), min_size=1, max_size=6
)
FULL = (CONFIGS / "_base_" / "coco_rcnn_1x.yaml").read_text() + "model: {arch: mask_rcnn}\n"


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(EDITS)
def test_mutated_texts_give_only_our_errors(write, edits):
    text = FULL.replace("weights: imagenet", "name: res2net50_26w_4s")
    for place, removed, added in edits:
        start = int(place * len(text))
        text = text[:start] + added + text[start + removed :]
    path = write(text.encode("utf-8", "surrogatepass"))
    said = "fine"
    try:
        load_config(path)
    except ConfigError as error:
        said = str(error)
    assert len(said.splitlines()) == 1


def test_epochs_and_iterations_replace_each_other(write):
    base = write(TEXT, "a.yaml")
    path = write("_base_: a.yaml\ntrain: {epochs: 3}\n")
    lengths = [(one.train.iterations, one.train.epochs) for one in (
        load_config(base), load_config(path), load_config(base, ["train.epochs=0.5"]),
        load_config(path, ["train.iterations=7"]), load_config(base, ["train.epochs=null"]),
    )]  # fmt: skip
    assert lengths == [(100, None), (None, 3), (None, 0.5), (7, None), (100, None)]
    config = load_config(path)
    save_config(config, base)
    assert load_config(base) == config
