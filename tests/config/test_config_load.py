"""Reading configuration files: what is merged, what is refused, and what the messages say."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

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


def write(folder: Path, text: str, name: str = "x.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def message(path: Path, overrides: list[str] | None = None) -> str:
    with pytest.raises(ConfigError) as error:
        load_config(path, overrides or [])
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_shipped_configs_load_and_come_back_equal(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    save_config(config, tmp_path / "copy.yaml")
    assert load_config(tmp_path / "copy.yaml") == config
    assert parse_config(config_to_dict(config)) == config
    assert os.listdir(tmp_path) == ["copy.yaml"]


def test_shipped_configs_exist() -> None:
    assert len(SHIPPED) >= 10


def test_the_published_recipe() -> None:
    config = load_config(CONFIGS / "mask_rcnn_res2net50.yaml")
    assert (config.backbone.freeze_at, config.backbone.norm, config.backbone.weights) == (
        2,
        "FrozenBN",
        "imagenet",
    )
    assert (config.train.iterations, config.train.batch_size) == (180_000, 16)
    assert config.train.schedule.milestones == [120_000, 160_000]
    assert config.train.schedule.warmup_iterations == 1000
    assert config.train.optimizer.lr == 0.02
    assert config.train.optimizer.weight_decay == 1e-4
    assert config.data.min_size_train == list(range(640, 801, 32))


@pytest.mark.parametrize("depth", [50, 101])
def test_the_published_segmentation_recipe(depth: int) -> None:
    config = load_config(CONFIGS / f"deeplabv3plus_res2net{depth}_voc.yaml")
    assert config.backbone.name == f"res2net{depth}_26w_4s"
    assert (config.model.arch, config.model.num_classes, config.model.output_stride) == (
        "deeplabv3plus",
        21,
        16,
    )
    assert [part.split for part in config.data.train + config.data.val] == ["trainaug", "val"]
    assert tuple(config.data.class_names) == ("background", *VOC_CLASSES)
    assert (config.data.crop_size, config.data.scale, config.data.flip) == (513, (0.5, 2.0), 0.5)
    assert (config.train.iterations, config.train.batch_size) == (30_000, 16)
    assert (config.train.schedule.name, config.train.schedule.power) == ("poly", 0.9)
    assert (config.eval.scales, config.eval.flip, config.eval.window) == ([1.0], False, None)


@pytest.mark.parametrize(
    ("name", "images", "batch", "epochs", "milestones"),
    [
        ("classification_res2net50_imagenet", 1_281_167, 256, 100, [30, 60, 90]),
        ("classification_res2net50_v1b_imagenet", 1_281_167, 256, 300, [75, 150, 225]),
        ("classification_res2next29_cifar100", 50_000, 128, 300, [150, 225]),
    ],
)
def test_published_recipes_in_epochs(
    name: str, images: int, batch: int, epochs: int, milestones: list[int]
) -> None:
    train = load_config(CONFIGS / f"{name}.yaml").train
    assert train.batch_size == train.reference_batch == batch
    assert train.optimizer.lr == 0.1
    assert train.iterations * batch / images == pytest.approx(epochs, abs=3e-3)
    done = [step * batch / images for step in train.schedule.milestones]
    assert done == pytest.approx(milestones, abs=3e-3)


@pytest.mark.parametrize("value", ["1e-4", "1E-4", "0.0001", ".0001", "+1.e-4", "100e-6"])
def test_numbers_as_people_write_them(value: str, tmp_path: Path) -> None:
    path = write(tmp_path, TEXT.replace("0.02", value))
    assert load_config(path).train.optimizer.lr == pytest.approx(1e-4)
    assert load_config(path, [f"train.optimizer.lr={value}"]).train.optimizer.lr == pytest.approx(1e-4)


@pytest.mark.parametrize("word", ["no", "yes", "on", "off", "NO", "y", "1:30", "1_000", "2020-01-01", "<<"])
def test_words_stay_words(word: str, tmp_path: Path) -> None:
    path = write(tmp_path, TEXT + f"runtime: {{output_dir: {word}}}\ndata: {{class_names: [{word}]}}\n")
    config = load_config(path)
    assert config.runtime.output_dir == word
    assert config.data.class_names == [word]
    assert "train.compile = 'no'" in message(path, ["train.compile=no"])


@pytest.mark.parametrize(
    "word", ["1e-4", "1E5", "null", "~", "true", "010", "0o17", "no", ".inf", "a: b", "#", "é\n", " "]
)
def test_saved_strings_stay_strings(word: str, tmp_path: Path) -> None:
    data = config_to_dict(load_config(write(tmp_path, TEXT)))
    data["runtime"]["output_dir"] = word
    data["model"]["detectron2"] = {word: [word, 1, 1e-5, None, True, {"x": 10**30}]}
    config = parse_config(data)
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config


def test_save_leaves_the_old_file_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(write(tmp_path, TEXT))

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ConfigError, match="No space left"):
        save_config(config, tmp_path / "x.yaml")
    assert (tmp_path / "x.yaml").read_text() == TEXT
    assert os.listdir(tmp_path) == ["x.yaml"]
    with pytest.raises(ConfigError, match="cannot be written"):
        save_config(config, tmp_path / "absent" / "x.yaml")


def test_bases_merge_and_lists_replace(tmp_path: Path) -> None:
    write(tmp_path, "data: {min_size_train: [1, 2, 3], flip: 0.1}\ntrain: {iterations: 5}\n", "a.yaml")
    write(tmp_path, "_base_: a.yaml\ndata: {min_size_train: [7]}\n", "b.yaml")
    write(tmp_path, "data: {flip: 0.3}\n", "c.yaml")
    path = write(tmp_path, "_base_: [b.yaml, c.yaml]\n" + TEXT)
    config = load_config(path)
    assert config.data.min_size_train == [7]
    assert config.data.flip == 0.3
    assert config.train.iterations == 100


def test_the_place_is_the_file_of_the_key(tmp_path: Path) -> None:
    write(tmp_path, "# comment\ntrain:\n  batchsize: 5\n", "a.yaml")
    assert message(write(tmp_path, "_base_: a.yaml\n" + TEXT)).startswith(
        f"{tmp_path / 'a.yaml'}:3: unknown key 'train.batchsize'; did you mean 'train.batch_size'? "
        "Known keys of 'train': iterations, batch_size,"
    )
    write(tmp_path, "train:\n  compile: 3\n", "a.yaml")
    assert message(tmp_path / "x.yaml").startswith(f"{tmp_path / 'a.yaml'}:2: train.compile = 3: ")


def test_bases_in_a_circle_and_absent_ones(tmp_path: Path) -> None:
    write(tmp_path, "_base_: b.yaml\n", "a.yaml")
    write(tmp_path, "_base_: [a.yaml]\n", "b.yaml")
    assert "circle: a.yaml -> b.yaml -> a.yaml" in message(tmp_path / "a.yaml")
    assert "circle" in message(write(tmp_path, "_base_: x.yaml\n"))
    text = message(write(tmp_path, "\n_base_: aa.yaml\n"))
    assert text.startswith(f"{tmp_path / 'x.yaml'}:2: _base_: ")
    assert "nearest there: a.yaml" in text
    assert "expected a path" in message(write(tmp_path, "_base_: {a: 1}\n"))
    assert "expected a path" in message(write(tmp_path, "_base_: [1]\n"))


def test_wrong_type(tmp_path: Path) -> None:
    path = write(tmp_path, TEXT.replace("size: 4", "size: four"))
    assert message(path) == f"{path}:6: train.batch_size = 'four': should be a valid integer > 0"
    assert "train.batch_size = 4.0: " in message(write(tmp_path, TEXT.replace("size: 4", "size: 4.0")))
    assert "train.batch_size = '4': " in message(write(tmp_path, TEXT.replace("size: 4", "size: '4'")))
    assert "train.batch_size = True: " in message(write(tmp_path, TEXT.replace("size: 4", "size: true")))
    assert "train.batch_size = -4: should be greater than 0" in message(
        write(tmp_path, TEXT.replace("size: 4", "size: -4"))
    )


def test_missing_key(tmp_path: Path) -> None:
    path = write(tmp_path, TEXT.replace("  iterations: 100\n", ""))
    assert message(path) == f"{path}:4: train.iterations is missing: Optimizer steps."


def test_missing_sections_and_empty_files(tmp_path: Path) -> None:
    path = write(tmp_path, "")
    text = message(path)
    assert text.startswith(f"{path}: task is missing")
    assert "(and 3 more: backbone, model, train)" in text
    assert "expected a mapping" in message(write(tmp_path, "- a\n"))
    assert "expected a mapping" in message(write(tmp_path, "word"))
    assert "a single document" in message(write(tmp_path, TEXT + "---\na: 1\n"))


def test_a_typo_is_reported_before_what_it_leaves_missing(tmp_path: Path) -> None:
    path = write(tmp_path, TEXT.replace("iterations", "iteration"))
    text = message(path)
    assert text.startswith(f"{path}:5: unknown key 'train.iteration'; did you mean 'train.iterations'?")
    assert text.endswith("(and 1 more: train.iterations)")


def test_a_key_in_the_wrong_section(tmp_path: Path) -> None:
    path = write(tmp_path, TEXT)
    assert "unknown key 'train.lr'; did you mean 'train.optimizer.lr'?" in message(path, ["train.lr=1"])
    assert "unknown key 'batch_size'; did you mean" in message(path, ["batch_size=1"])
    assert "Known keys at the top: task, backbone" in message(path, ["zzz=1"])
    assert "Known keys of 'data.train': layout, images, annotations" in message(path, ["data.train.img=1"])


def test_duplicate_keys(tmp_path: Path) -> None:
    path = write(tmp_path, TEXT + "    lr: 3\n")
    assert message(path) == f"{path}:9: duplicate key 'train.optimizer.lr', first on line 8"


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch {mark}']",
        "!!python/object/new:os.system ['touch {mark}']",
        "!!python/object/apply:os.mkdir {{args: ['{mark}']}}",
        "!!python/name:os.system ''",
        "!!python/tuple [1, 2]",
        "!!binary aGVsbG8=",
        "!!set {{a, b}}",
        "!!timestamp 2020-01-01",
        "!own x",
    ],
)
def test_tags_are_refused_and_never_run(value: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    text = TEXT + "runtime:\n  output_dir: " + value.format(mark=mark) + "\n"
    path = write(tmp_path, text)
    assert message(path).startswith(f"{path}:10: the tag ")
    assert "the tag " in message(write(tmp_path, TEXT), ["runtime.output_dir=" + value.format(mark=mark)])
    assert not mark.exists()


def test_core_tags_are_checked(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, TEXT), ["train.batch_size=!!int '8'"]).train.batch_size == 8
    assert "'x' is not of the kind int" in message(tmp_path / "x.yaml", ["train.batch_size=!!int x"])


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "more than 10000 values"),
        ("a: &a [*a, *a]", "nested deeper|more than 10000 values"),
        ("a: " + "[" * 100 + "]" * 100, "nested deeper than 50"),
        ("a: " + "[" * 100_000, "nested deeper than 50"),
        ("\n".join(" " * n + "a:" for n in range(100)), "nested deeper than 50"),
        ("- " * 100_000, "nested deeper than 50"),
        ("a: [" + "1, " * 300_000 + "1]", "more than 10000 values"),
        ("a: " + "x" * 1_100_000, "larger than 1000000 bytes"),
        ("a: " + "9" * 900_000, "the number is too long"),
        ("a: " + "x y\n  " * 150_000, "is missing|unknown key"),
        ("? [a]\n: 1\n", "a key must be a word"),
        ("task:\tdetection\n\tbackbone: 1\n", "'\\\\t'|tab"),
        ("a: [1, 2\n", "expected"),
        ("a: *absent\n", "undefined alias"),
        ('a: "\\UFFFFFFFF"\n', "not valid YAML"),
        ('a: "\\ud800"\n', "surrogate"),
        ("%YAML 1." + "9" * 5000 + "\n--- a", "not valid YAML"),
        ("a: \x07\n", "not allowed"),
    ],
)
def test_hostile_texts_are_refused_at_once(text: str, said: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    start = time.process_time()
    with pytest.raises(ConfigError, match=said):
        load_config(path)
    assert time.process_time() - start < 2


def test_the_alias_bomb_takes_no_second(tmp_path: Path) -> None:
    path = write(tmp_path, BOMB)
    start = time.process_time()
    message(path)
    assert time.process_time() - start < 1


def test_aliases_in_moderation(tmp_path: Path) -> None:
    split = "data:\n  train: &split {images: a, annotations: b}\n  val: *split\n"
    config = load_config(write(tmp_path, TEXT + split))
    assert config.data.train == config.data.val


def test_tabs_have_a_line(tmp_path: Path) -> None:
    path = write(tmp_path, TEXT.replace("  batch_size", "\tbatch_size"))
    assert message(path).startswith(f"{path}:6: ")


def test_other_files(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"task: detection\na: \xff\n")
    assert message(tmp_path / "x.yaml") == f"{tmp_path / 'x.yaml'}:2: not UTF-8 text"
    assert "no such file" in message(tmp_path)
    assert "does not exist" in message(tmp_path / "no" / "x.yaml")
    text = message(tmp_path / "xx.yaml")
    assert f"no such file in {tmp_path}; nearest there: x.yaml" in text
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    assert load_config(tmp_path / "bom.yaml").task == "detection"


def test_overrides(tmp_path: Path) -> None:
    split = "data: {train: {images: a, annotations: b}, min_size_train: [1, 2]}\n"
    path = write(tmp_path, TEXT + split)
    config = load_config(
        path,
        [
            "train.batch_size=2",
            "train.batch_size = 8",
            "data.train=null",
            "data.min_size_train=[5]",
            "backbone={norm: GN}",
            "eval.expected.segm/AP=[35.6, 0.2]",
            "model.detectron2.MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA=0.5",
            "runtime.output_dir=a=b",
        ],
    )
    assert config.train.batch_size == 8
    assert config.data.train is None
    assert config.data.min_size_train == [5]
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
        ("train.batch_size=x", "train.batch_size = 'x': should be a valid integer > 0"),
        ("train.accumulate=3", "train.accumulate = 3: must divide batch_size = 4"),
        ("train.iterations=[1", "expected"),
        ("train=3", "train = 3"),
        ("_base_=x.yaml", "unknown key '_base_'"),
        ("a\nb=3", "unknown key"),
        ("<a=3", "unknown key '<a'"),
        ("train.optimizer.betas=[0.5]", "train.optimizer.betas[1] is missing"),
        ("a=\udcff", "not allowed"),
    ],
)
def test_wrong_overrides(override: str, said: str, tmp_path: Path) -> None:
    text = message(write(tmp_path, TEXT), [override])
    assert text.startswith("override ")
    assert said in text


def test_parts_of_both_layouts(tmp_path: Path) -> None:
    path = write(tmp_path, TEXT)
    data = load_config(path, ["data.train={images: a, annotations: b}", "data.val={root: c, split: d}"]).data
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


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.train=[]", "data.train = []"),
        ("data.train=[{split: x}]", "data.train[0].root is missing"),
        ("data.train={root: a}", "data.train.split is missing"),
        ("data.train={split: a}", "data.train.root is missing"),
        ("data.train=[{root: a, splitt: x}]", "did you mean 'data.train[0].split'?"),
        ("data.train={root: a, split: 3}", "data.train.split = 3"),
        ("data.train={images: a}", "data.train.annotations is missing"),
        ("data.train={images: a, annotation: b}", "did you mean 'data.train.annotations'?"),
        ("data.train={layout: voc, root: a}", "layout = 'voc': expected one of 'coco', 'voc-boxes'"),
        ("data.train={layout: coco, root: a, split: b}", "unknown key 'data.train.root'"),
        (
            "data.train=[{images: a, annotations: b}, {images: c, annotations: d}]",
            "the layout coco takes one part, not 2",
        ),
        (
            "data.train=[{images: a, annotations: b}, {root: c, split: d}]",
            "must have one layout, not coco and voc-boxes",
        ),
    ],
)
def test_wrong_parts(override: str, said: str, tmp_path: Path) -> None:
    text = message(write(tmp_path, TEXT), [override])
    assert said in text
    assert "data.train.coco" not in text  # the tag of a layout is not a key


def test_parts_of_classification(tmp_path: Path) -> None:
    text = TEXT.replace("task: detection", "task: classification")
    text = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("model"))
    path = write(tmp_path, text)
    folders = load_config(path, ["data.train=a", "data.val={root: b}"]).data
    assert (folders.train, folders.val) == ([ClassFoldersPart(root="a")], [ClassFoldersPart(root="b")])
    cifar = load_config(path, ["data.train=a", "data.val={root: b}", "data.format=cifar10"])
    assert cifar.data.train == [CifarPart(layout="cifar10", root="a")]
    assert cifar.data.val == [CifarPart(layout="cifar10", root="b")]
    assert load_config(path, ["data.train={layout: cifar10, root: a}"]).data.train == cifar.data.train
    assert parse_config(config_to_dict(cifar)) == cifar
    said = message(path, ["data.format=tar"])
    assert "data.format = 'tar': expected 'folder', 'cifar10' or 'cifar100'" in said
    assert "expected one of 'class-folders'" in message(path, ["data.train={layout: coco, root: a}"])


COCO = "{images: a, annotations: b}"
VOC = "{root: c, split: d}"


@pytest.mark.parametrize(("below", "above"), [(COCO, VOC), (VOC, COCO)])
def test_a_split_of_the_other_layout_takes_the_place_of_one(below: str, above: str, tmp_path: Path) -> None:
    """Half of each would name folders that are in neither."""
    write(tmp_path, TEXT + f"data: {{train: {below}}}\n", "base.yaml")
    path = write(tmp_path, f"_base_: base.yaml\ndata: {{train: {above}}}\n")
    expected = load_config(write(tmp_path, TEXT, "plain.yaml"), [f"data.train={above}"])
    assert load_config(path) == expected
    assert load_config(tmp_path / "base.yaml", [f"data.train={above}"]) == expected


def test_keys_of_one_layout_merge(tmp_path: Path) -> None:
    path = write(tmp_path, TEXT + f"data: {{train: {VOC}}}\n")
    (part,) = load_config(path, ["data.train.split=x", "data.train.images=y"]).data.train
    assert (part.root, part.split, part.images) == ("c", "x", "y")


def test_a_key_in_a_list_is_refused(tmp_path: Path) -> None:
    """It would take the place of the list, and a part of the data would be gone without a word."""
    path = write(tmp_path, TEXT + f"data: {{train: [{VOC}, {VOC}]}}\n")
    text = message(path, ["data.train.root=x"])
    assert "data.train is a list; give it whole: 'data.train=[...]'" in text


@pytest.mark.parametrize(
    ("name", "images", "steps", "milestones"),
    [("voc07", 5_011, 5_400, [3_600, 4_800]), ("voc0712", 16_551, 18_000, [12_000, 16_000])],
)
def test_the_voc_recipes(name: str, images: int, steps: int, milestones: list[int]) -> None:
    config = load_config(CONFIGS / f"faster_rcnn_res2net50_{name}.yaml")
    assert config.eval.method == "11point"
    assert tuple(config.data.class_names) == VOC_CLASSES
    assert [(Path(part.root).name, part.split) for part in config.data.train] == (
        [("VOC2007", "trainval"), ("VOC2012", "trainval")][: 1 + (name == "voc0712")]
    )
    assert [(Path(part.root).name, part.split) for part in config.data.val] == [("VOC2007", "test")]
    assert (config.train.iterations, config.train.schedule.milestones) == (steps, milestones)
    assert steps * config.train.batch_size / images == pytest.approx(17.3, abs=0.2)  # epochs


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
def test_mutated_texts_give_only_our_errors(tmp_path: Path, edits: list[tuple[float, int, str]]) -> None:
    text = FULL.replace("weights: imagenet", "name: res2net50_26w_4s")
    for place, removed, added in edits:
        start = int(place * len(text))
        text = text[:start] + added + text[start + removed :]
    (tmp_path / "x.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        load_config(tmp_path / "x.yaml")
    except ConfigError as error:
        said = str(error)
    else:
        said = "fine"
    assert len(said.splitlines()) == 1
