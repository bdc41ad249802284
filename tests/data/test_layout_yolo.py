"""YOLO's layout: its many customs of paths, defects under their own codes, and the same boxes as COCO's."""

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.mask import iou
from reading import fails

from res2net_dense.data.layouts import CocoPart, YoloPart, open_source
from res2net_dense.data.layouts.yolo import read_yolo
from res2net_dense.errors import ConfigError

BOX = "0 0.5 0.5 0.2 0.4"


def make(root, *, text="", labels=None, images=("a", "b"), folder="images/train", size=(100, 50)):
    """A set of images of 100 x 50; `labels` are the lines of each by its name."""
    (root / folder).mkdir(parents=True)
    for number, name in enumerate(images):
        path = root / folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (number, 2, 3)).save(path)
    for name, lines in ({"a": BOX} if labels is None else labels).items():
        file = root / folder.replace("images", "labels") / f"{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(lines)
    (root / "data.yaml").write_text(text or f"train: {folder}\nnames: [cat, dog]\n")
    return root


def read(root, *, masks=False, **part):
    return read_yolo(YoloPart(yaml=str(root), **part), masks=masks)


def source_of(root, *, needs=("boxes",), strict=True, **part):
    part = YoloPart(yaml=str(root), **part)
    return open_source([part], train=True, needs=needs, strict=strict)


def codes(boxes):
    """How many findings there are of each kind, but for the class that most sets here do not use."""
    return {code: count for code, count in boxes.findings.counts.items() if code != "class-unused"}


def test_boxes_are_shares_of_their_image(tmp_path):
    source = source_of(make(tmp_path))
    assert (list(source.class_names), len(source)) == (["cat", "dog"], 2)
    assert source.sample(0)["boxes"].tolist() == [[40, 15, 60, 35]]
    assert source.sample(0)["labels"].tolist() == [0]
    assert source.sample(1)["boxes"].shape == (0, 4)  # without a file it has no object
    assert codes(source) == {}
    assert source.indices_with_objects().tolist() == [0]


def test_outlines_give_masks_and_boxes(tmp_path):
    root = make(tmp_path, labels={"a": "1 0.1 0.2 0.3 0.2 0.3 0.6 0.1 0.6\n"})
    source = source_of(root, needs=("boxes", "masks"))
    sample = source.sample(0)
    assert np.allclose(sample["masks"][0][0], [10, 10, 30, 10, 30, 30, 10, 30])
    assert torch.allclose(sample["boxes"], torch.tensor([[10.0, 10, 30, 30]]))
    assert source.ground_truth()["annotations"][0]["area"] == 400
    assert source_of(root).ground_truth()["annotations"][0]["area"] == pytest.approx(400)


def test_boxes_among_outlines_are_left_out_where_masks_are_needed(tmp_path):
    root = make(tmp_path, labels={"a": f"{BOX}\n1 0.1 0.2 0.3 0.2 0.3 0.6 0.1 0.6\n"})
    assert len(source_of(root).sample(0)["boxes"]) == 2
    boxes = read(root, masks=True)
    assert codes(boxes) == {"mask-invalid": 1}
    assert boxes.dropped == {"box without an outline": 1}
    source = source_of(root, needs=("boxes", "masks"))
    assert len(source.sample(0)["masks"]) == 1
    assert any("1 object left out: box without an outline" in text for text in source.remarks)


def test_boxes_alone_are_refused_where_masks_are_needed(tmp_path):
    root = make(tmp_path)
    needs = ("boxes", "masks")
    fails(lambda: source_of(root, needs=needs), "boxes and no outlines; use a faster_rcnn", kind=ConfigError)


@pytest.mark.parametrize(
    ("text", "folder"),
    [
        ("train: images/train", "images/train"),
        ("train: ./images/train/", "images/train"),
        ("path: .\ntrain: images/train", "images/train"),
        ("path: ../coco8\ntrain: images/train", "images/train"),  # in Ultralytics' own folder of sets
        ("path: /content/datasets/coco8\ntrain: images/train", "images/train"),  # another computer's
        ("train: ../train/images", "train/images"),  # Roboflow
        ("train: /content/birds-1/train/images", "train/images"),
        ("train: C:\\birds\\train\\images", "train/images"),
        ("train: train.txt", "images/train"),
        ("train: [images/train]", "images/train"),
        ("path: data\ntrain: images", "data/images"),
        ("train: photos", "photos"),  # labels next to the images
    ],
)
def test_paths_follow_their_customs(tmp_path, text, folder):
    root = make(tmp_path / "birds", text=f"{text}\nnames: {{0: cat, 1: dog}}\n", folder=folder)
    (root / "train.txt").write_text("./images/train/a.png\nimages/train/b.png\n\n")
    source = source_of(root)
    assert len(source) == 2
    assert source.sample(0)["boxes"].tolist() == [[40, 15, 60, 35]]


def test_images_of_a_list_may_have_the_paths_of_another_computer(tmp_path):
    root = make(tmp_path, text="train: train.txt\nnames: [cat]\n")
    (root / "train.txt").write_text("/home/me/set/images/train/a.png\nD:\\set\\images\\train\\b.png\n")
    boxes = read(root)
    assert [image.file_name for image in boxes.images] == ["images/train/a.png", "images/train/b.png"]
    assert codes(boxes) == {"name-near": 2}


def test_the_last_folder_of_images_has_the_labels(tmp_path):
    root = make(tmp_path, folder="images/x/images/train", text="train: images/x/images/train\nnames: [cat]\n")
    (root / "labels").rename(root / "other")
    (root / "images/x/labels").parent.mkdir(exist_ok=True)
    (root / "other/x/labels").rename(root / "images/x/labels")
    assert len(source_of(root).sample(0)["boxes"]) == 1


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("names: [cat, dog]", ["cat", "dog"]),
        ("names: {1: dog, 0: cat}", ["cat", "dog"]),
        ("nc: 2", ["class0", "class1"]),
        ("nc: 2\nnames: ['1', 2]", ["1", "2"]),
    ],
)
def test_names_are_a_list_a_table_or_their_number(tmp_path, text, names):
    assert list(source_of(make(tmp_path, text=f"train: images/train\n{text}\n")).class_names) == names


def test_other_files_that_describe_a_set(tmp_path):
    """A list of classes alone (labelImg, Label Studio), and darknet's (CVAT)."""
    studio = make(tmp_path / "studio", folder="images")
    (studio / "data.yaml").unlink()
    (studio / "classes.txt").write_text("cat\ndog\n")
    assert len(source_of(studio).sample(0)["boxes"]) == 1
    cvat = make(tmp_path / "cvat", folder="obj_train_data")
    (cvat / "data.yaml").unlink()
    (cvat / "obj.names").write_text("cat\ndog\n")
    (cvat / "obj.data").write_text("classes = 2\ntrain = data/train.txt\nnames = data/obj.names\n")
    (cvat / "train.txt").write_text("data/obj_train_data/a.png\ndata/obj_train_data/b.png\n")
    source = source_of(cvat)
    assert (len(source), list(source.class_names)) == (2, ["cat", "dog"])
    assert len(source.sample(0)["boxes"]) == 1


def test_images_may_be_elsewhere(tmp_path):
    """As with the labels that `predict --save yolo` writes."""
    root = make(tmp_path / "set", folder="images")
    (root / "images").rename(tmp_path / "photos")
    assert len(source_of(root, images=str(tmp_path / "photos")).sample(0)["boxes"]) == 1
    other = make(tmp_path / "other", labels={"a": f"{BOX}\n1 0.2 0.2 0.1 0.1"})  # with labels of its own
    photos = str(other / "images/train")
    assert len(source_of(root, images=photos).sample(0)["boxes"]) == 1
    assert len(source_of(other, images=photos).sample(0)["boxes"]) == 2
    (tmp_path / "alone").mkdir()
    (root / "data.yaml").rename(tmp_path / "alone/data.yaml")
    assert len(source_of(tmp_path / "alone", images=photos).sample(0)["boxes"]) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: images/train", "no names of classes"),
        ("train: images/train\nnames: [no, yes]", "False is not a text"),
        ("train: images/train\nnames: {0: a, 2: b}", "the ids of its names are 0, 2"),
        ("train: images/train\nnames: [a, a]", "there twice: a"),
        ("train: images/train\nnames: [a]\nnc: 2", "nc is 2 but there are 1 names"),
        ("val: images/train\nnames: [a]", "it has no 'train', only val"),
        ("- a", "not a data.yaml"),
        ("names: [a", "not valid yaml"),
        ("names: !!python/object/apply:os.system [x]", "not valid yaml"),
        ("[" * 3000, "not valid yaml"),
        ("train: images/none\nnames: [a]", "'images/none' is not in"),
        ("train: 3\nnames: [a]", "train is 3, not a path"),
        ("train: images/train\nnames: [a]\nkpt_shape: 17", "kpt_shape is 17"),
    ],
)
def test_a_wrong_description_is_named(tmp_path, text, said):
    root = make(tmp_path, text=text)
    fails(lambda: source_of(root), str(root / "data.yaml"), said)


@pytest.mark.parametrize("entry", ["/etc", "../outside/images", "link.txt"])
def test_no_path_leaves_the_folder_of_data_yaml(tmp_path, entry):
    make(tmp_path / "outside", folder="images")
    root = make(tmp_path / "set", text=f"train: {entry}\nnames: [cat]\n")
    (root / "link.txt").symlink_to(tmp_path / "outside/images/a.png")
    fails(lambda: source_of(root), f"leads out of {root}")


def test_images_of_a_list_stay_inside_too(tmp_path):
    make(tmp_path / "outside", folder="images")
    root = make(tmp_path / "set", text="train: train.txt\nnames: [cat]\n")
    (root / "train.txt").write_text(
        "../outside/images/a.png\nimages/train/a.png\nimages/train/a.png\nx.png\n"
    )
    boxes = read(root)
    assert codes(boxes) == {"path-outside": 1, "list-entry": 1, "file-missing": 1}
    assert len(boxes) == 1
    fails(lambda: source_of(root), "train.txt: line 1", "leads out of", "and 2 more errors")


DEFECTS = {
    "class-id": (
        "2 0.5 0.5 0.2 0.4",
        "class '2', but data.yaml has the classes 0 to 1 (cat, dog); ids start at 0",
    ),
    "entry-format": ("0 0.5 0.5 0.2", "not a class and 4 finite numbers"),
    "boxes-pixels": ("0 50 25 20 20", "these are pixels"),
    "box-negative-size": ("0 0.5 0.5 -0.2 0.4", "-20 x 20 pixels"),
    "box-zero-area": ("0 0.5 0.5 0 0.4", "0 x 20 pixels"),
    "box-outside": ("0 1.5 0.5 0.2 0.4", "outside the image of 100 x 50"),
    "box-partly-outside": ("0 0.95 0.5 0.2 0.4", "leaves the image"),
    "box-tiny": ("0 0.5 0.5 0.005 0.01", "is it a slip"),
    "object-twice": (f"{BOX}\n{BOX}", "it is line 1 again"),
    "polygon-odd": ("0 0.1 0.1 0.2 0.1 0.2 0.2 0.3", "its outline has 7 numbers"),
    "polygon-line": ("0 0.1 0.1 0.2 0.2 0.3 0.3", "lie on a line"),
    "score": ("0 0.5 0.5 0.2 0.4 0.93", "it has a score (0.93)"),
}


@pytest.mark.parametrize("code", DEFECTS)
def test_a_wrong_line_has_its_own_code(tmp_path, code):
    line, said = DEFECTS[code]
    root = make(tmp_path, labels={"a": line, "b": BOX})
    boxes = read(root)
    assert codes(boxes) == {code: 1}
    finding = next(iter(boxes.findings))
    assert said in finding.text
    assert finding.text.startswith("line ")
    assert (finding.file, finding.place) == (str(root / "labels/train/a.txt"), 0)
    assert finding.image.endswith("a.png")
    if finding.severity == "error":
        fails(lambda: source_of(root), f"labels/train/a.txt: line 1: {finding.text[8:40]}")
    else:
        source_of(root)
    assert sum(len(image.objects) for image in boxes.images) == 1 + (
        code in ("box-partly-outside", "box-tiny", "object-twice", "score")
    )


@pytest.mark.parametrize(
    "line", ["0 nan 0.5 0.2 0.4", "0 0.5 0.5 0.2 inf", "bird 0.5 0.5 0.2 0.4", "0.5 0.5 0.5 0.2 0.4"]
)
def test_what_is_not_a_number_is_an_error(tmp_path, line):
    fails(lambda: source_of(make(tmp_path, labels={"a": line})), "a.txt: line 1")


def test_forms_that_are_legal_but_rare_are_read(tmp_path):
    lines = "cat 0.5 0.5 0.2 0.4\n\n1.0\t0.2 0.5 0.2 0.4\r\n 0, 0.8, 0.5, 0.2, 0.4 \n"
    root = make(tmp_path, labels={"a": "\ufeff" + lines, "b": ""})
    boxes = read(root)
    assert (codes(boxes), boxes.counts) == ({}, {"cat": 2, "dog": 1})
    pose = make(
        tmp_path / "pose", labels={"a": f"{BOX} 0.5 0.5 2 0.4 0.4 1"},
        text="train: images/train\nnames: [cat]\nkpt_shape: [2, 3]\n",
    )  # fmt: skip
    assert source_of(pose).sample(0)["boxes"].tolist() == [[40, 15, 60, 35]]


def test_rounding_at_the_border_is_no_finding(tmp_path):
    source = source_of(make(tmp_path, labels={"a": "0 0.9 0.5 0.2001 1.002"}))
    assert codes(source) == {}
    assert source.sample(0)["boxes"].tolist()[0] == pytest.approx([79.995, 0, 100, 50])


def test_missing_and_lonely_files_of_labels(tmp_path):
    root = make(tmp_path, labels={"a": BOX, "old": BOX, "classes": "cat"})
    assert codes(read(root)) == {"labels-alone": 1}
    (root / "labels").rename(root / "label")
    boxes = read(root)
    assert codes(boxes) == {"labels-missing": 1}
    fails(lambda: source_of(root), "no image has its file of labels", str(root / "labels/train"))


def test_labels_of_another_split_in_the_folder_are_not_lonely(tmp_path):
    root = make(tmp_path, text="train: train.txt\nnames: [cat]\n", labels={"a": BOX, "b": BOX})
    (root / "train.txt").write_text("images/train/a.png\n")
    assert codes(read(root)) == {}


def test_names_of_labels_may_differ_in_case_and_unicode(tmp_path):
    root = make(tmp_path, images=("IMG_1", "u\u0308ber"), labels={"img_1": BOX, "\u00fcber": BOX})
    boxes = read(root)
    assert (codes(boxes), boxes.counts["cat"]) == ({}, 2)


def test_a_broken_image_is_named_and_keeps_its_place(tmp_path):
    root = make(tmp_path, labels={"a": BOX, "b": BOX})
    (root / "images/train/a.png").write_bytes(b"no")
    boxes = read(root)
    assert codes(boxes) == {"image-unreadable": 1}
    assert next(iter(boxes.findings)).place == 0
    assert [len(image.objects) for image in boxes.images] == [0, 1]
    fails(lambda: source_of(root), "images/train/a.png: empty or not an image")


def test_the_toy_set_is_that_of_coco(draw_toy):
    """The same scenes in both layouts: boxes, labels and areas, to the six digits of the files."""
    coco, yolo = draw_toy("coco", train=12, val=4), draw_toy("yolo", train=12, val=4)
    needs = ("boxes", "masks")
    one = open_source(
        [CocoPart(images=f"{coco}/train", annotations=f"{coco}/annotations/train.json")],
        train=True,
        needs=needs,
    )
    other = source_of(yolo, needs=needs)
    assert list(other.findings) == []
    assert list(one.class_names) == list(other.class_names)
    assert len(one) == len(other) == 12
    for index in range(12):
        mine, theirs = one.sample(index), other.sample(index)
        assert torch.equal(mine["image"], theirs["image"])
        assert torch.equal(mine["labels"], theirs["labels"])
        assert torch.allclose(mine["boxes"], theirs["boxes"], atol=1e-3)
    truths = [list(source.ground_truth()["annotations"]) for source in (one, other)]
    codes = [[entry["segmentation"] for entry in truth] for truth in truths]
    overlaps = np.diagonal(iou(*codes, [0] * len(codes[0])))
    assert len(overlaps) > 12
    assert overlaps.min() > 0.9
    assert overlaps.mean() > 0.998
    areas = [entry["area"] for entry in source_of(yolo).ground_truth()["annotations"]]
    assert np.allclose([entry["area"] for entry in truths[0]], areas, atol=0.1)
