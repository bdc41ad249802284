"""P8: wrong annotations are found before training, each under its own code, and clean sets have no finding.

Each defect is seeded into a tiny clean set, and the command `res2net-dense check` is asked.
"""

import json
import time
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from res2net_dense import cli
from res2net_dense.data.layouts.voc_boxes import VOC_CLASSES
from res2net_dense.findings import KINDS
from res2net_dense.palette import voc_palette

WIDTH, HEIGHT = 64, 48
SQUARE = [8, 8, 28, 8, 28, 28, 8, 28]


def save_image(file, seed, size=(WIDTH, HEIGHT)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


def objects(number=4, **keys):
    """Annotations of two images, two each."""
    for place in range(number):
        left = 4.0 + 5 * place
        yield {
            "id": place + 1,
            "image_id": place // 2 + 1,
            "category_id": place % 2 + 1,
            "bbox": [left, 6.0, 20.0, 18.0],
            "area": 360.0,
            "iscrowd": 0,
            "segmentation": [[left, 6.0, left + 20, 6.0, left + 20, 24.0, left, 24.0]],
            **keys,
        }


def write_coco(root, edit=lambda document: None):
    """A clean set in COCO's format with a change; returns the arguments of `check`."""
    for number in (1, 2):
        save_image(root / "images" / f"{number}.png", number)
    document = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": WIDTH, "height": HEIGHT} for n in (1, 2)],
        "categories": [{"id": 1, "name": "crab"}, {"id": 2, "name": "gull"}],
        "annotations": list(objects()),
    }
    edit(document)
    (root / "all.json").write_text(json.dumps(document))
    return ["--layout", "coco", str(root / "all.json"), str(root / "images")]


def write_people(root, edit=lambda annotation: None):
    """A clean set with keypoints, and a change of its first annotation."""

    def add(document):
        document["categories"][0] |= {"keypoints": ["nose", "tail"], "skeleton": [[1, 2]]}
        for annotation in document["annotations"]:
            if annotation["category_id"] == 1:
                annotation |= {"keypoints": [10, 10, 2, 14, 12, 1], "num_keypoints": 2}
        edit(document["annotations"][0])

    return write_coco(root, add)


def write_voc(root, edit=lambda xml: xml):
    """A clean set of VOC's boxes, and a change of its first xml."""
    for name in ("a", "b"):
        save_image(root / "JPEGImages" / f"{name}.png", ord(name))
        xml = (
            f"<annotation><filename>{name}.png</filename><size><width>{WIDTH}</width>"
            f"<height>{HEIGHT}</height><depth>3</depth></size><object><name>crab</name><bndbox><xmin>5</xmin>"
            "<ymin>6</ymin><xmax>25</xmax><ymax>30</ymax></bndbox></object></annotation>"
        )
        (root / "Annotations").mkdir(exist_ok=True)
        (root / "Annotations" / f"{name}.xml").write_text(edit(xml) if name == "a" else xml)
    (root / "ImageSets/Main").mkdir(parents=True)
    (root / "ImageSets/Main/train.txt").write_text("a\nb\n")
    return ["--layout", "voc", str(root), "train"]


def label_map(values):
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    for place, value in enumerate(values):
        mask[5:20, 5 + 10 * place : 13 + 10 * place] = value
    return mask


def write_label_maps(root, change=None):
    """A clean set of VOC's masks; `change` replaces the image of the first mask."""
    for name in ("a", "b"):
        save_image(root / "JPEGImages" / f"{name}.png", ord(name))
        image = Image.fromarray(label_map([1, 2, 255]), mode="P")
        image.putpalette(voc_palette().tobytes())
        (root / "SegmentationClass").mkdir(exist_ok=True)
        if name == "a" and change is not None:
            image = change
        image.save(root / "SegmentationClass" / f"{name}.png")
    (root / "class_names.txt").write_text("background\ncrab\ngull\n")
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/train.txt").write_text("a\nb\n")
    return ["--layout", "voc-masks", str(root), "train"]


def write_pairs(root, change=None, *, drop=False, every=False):
    """A clean set of images and masks; `change` replaces the first mask, or all."""
    for name in ("a", "b"):
        save_image(root / "images" / f"{name}.png", ord(name))
        (root / "masks").mkdir(exist_ok=True)
        mask = label_map([255])
        if name == "a" and drop:
            continue
        Image.fromarray(change if (name == "a" or every) and change is not None else mask).save(
            root / f"masks/{name}.png"
        )
    return ["--layout", "pairs", str(root)]


def write_two_sets(root):
    """A configuration whose sets share an image file."""
    words = []
    for part in ("train", "val"):
        _, _, file, images = write_coco(root / part)
        words.append(f"data.{part}={{annotations: {file}, images: {images}}}")
    for number in (1, 2):
        save_image(root / "val/images" / f"{number}.png", number + 10)
    (root / "val/images/2.png").write_bytes((root / "train/images/1.png").read_bytes())
    return ["--config", "quick/mask_rcnn_res2net50", *words]


def first(**keys):
    """Change the first annotation."""
    return lambda document: document["annotations"][0].update(keys)


def without(*keys):
    def edit(document):
        for key in keys:
            del document["annotations"][0][key]

    return edit


def on_all(**keys):
    def edit(document):
        for annotation in document["annotations"]:
            annotation.update({key: value(annotation) for key, value in keys.items()})

    return edit


def repeat_annotation_id(document):
    document["annotations"][1]["id"] = document["annotations"][0]["id"]


def repeat_image_id(document):
    document["images"][1]["id"] = document["images"][0]["id"]
    on_all(image_id=lambda annotation: document["images"][0]["id"])(document)


def repeat_file_name(document):
    document["images"][1]["file_name"] = document["images"][0]["file_name"]


def renumber_categories(new):
    def edit(document):
        for entry, key in [(c, "id") for c in document["categories"]] + [
            (a, "category_id") for a in document["annotations"]
        ]:
            entry[key] = new[entry[key] - 1]

    return edit


def write_ids_as_texts(document):
    for image in document["images"]:
        image["id"] = str(image["id"])
    on_all(image_id=lambda annotation: str(annotation["image_id"]))(document)


RUNS = {"size": [HEIGHT, WIDTH], "counts": [500, 100, HEIGHT * WIDTH - 600]}

DEFECTS = {
    "zero area": ("box-zero-area", write_coco, first(bbox=[8, 8, 0, 20])),
    "negative size": ("box-negative-size", write_coco, first(bbox=[28, 28, -20, -20])),
    "not a number": ("box-not-finite", write_coco, first(bbox=[8, 8, float("nan"), 20])),
    "partly outside": ("box-partly-outside", write_coco, first(bbox=[50, 8, 30, 20])),
    "wholly outside": ("box-outside", write_coco, first(bbox=[80, 8, 20, 20])),
    "under 3 points": ("polygon-too-short", write_coco, first(segmentation=[[8, 8, 28, 8]])),
    "odd length": ("polygon-odd", write_coco, first(segmentation=[[*SQUARE, 8]])),
    "self-crossing": ("polygon-crossing", write_coco, first(segmentation=[[8, 8, 28, 28, 28, 8, 8, 28]])),
    "run-length code of another size": (
        "rle-size", write_coco, first(segmentation={**RUNS, "size": [WIDTH, HEIGHT + 1]}, iscrowd=1),
    ),
    "uncompressed run-length code": ("rle-uncompressed", write_coco, first(segmentation=RUNS, iscrowd=1)),
    "iscrowd null": ("crowd-null", write_coco, first(iscrowd=None)),
    "category gaps": ("category-gaps", write_coco, renumber_categories([1, 7])),
    "id 0": ("id-zero", write_coco, renumber_categories([0, 1])),
    "text ids": ("text-ids", write_coco, write_ids_as_texts),
    "duplicate annotation id": ("duplicate-annotation-id", write_coco, repeat_annotation_id),
    "duplicate image id": ("duplicate-image-id", write_coco, repeat_image_id),
    "duplicate file name": ("duplicate-file-name", write_coco, repeat_file_name),
    "same file in train and val": ("train-val-overlap", write_two_sets, None),
    "annotation of an unlisted image": ("unknown-image", write_coco, first(image_id=99)),
    "unlisted category": ("unknown-category", write_coco, first(category_id=99)),
    "missing area": ("area-missing", write_coco, without("area")),
    "keypoints of the wrong length": (
        "keypoints-length", write_people, lambda annotation: annotation.update(keypoints=[10, 10, 2]),
    ),
    "visibility 3": (
        "keypoints-visibility", write_people, lambda a: a.update(keypoints=[10, 10, 3, 14, 12, 1]),
    ),
    "wrong number of keypoints": (
        "keypoints-count", write_people, lambda annotation: annotation.update(num_keypoints=1),
    ),
    "xml without size": (
        "xml-no-size", write_voc, lambda xml: xml[: xml.index("<size>")] + xml[xml.index("</size>") + 7 :],
    ),
    "xml with an entity": (
        "xml-dtd", write_voc, lambda xml: f'<!DOCTYPE a [<!ENTITY x "crab">]>{xml.replace("crab", "&x;")}',
    ),
    "saliency mask missing": ("mask-missing", lambda root: write_pairs(root, drop=True), None),
    "saliency mask of another size": (
        "mask-size", write_pairs, np.full((HEIGHT + 3, WIDTH), 255, dtype=np.uint8),
    ),
    "saliency mask of labels": ("mask-values", write_pairs, label_map([1, 2, 3])),
    "saliency masks of 0 and 1": (
        "mask-ones", lambda root: write_pairs(root, label_map([1]), every=True), None,
    ),
    "label above the classes": ("label-unknown", write_label_maps, Image.fromarray(label_map([1, 2, 7]))),
    "colour mask": (
        "mask-colour", write_label_maps, Image.fromarray(voc_palette()[label_map([1, 2])]),
    ),
}  # fmt: skip
"""The code, the clean set, and what is changed in it."""

CLEAN = {
    "coco": write_coco,
    "keypoints": write_people,
    "voc": write_voc,
    "label maps": write_label_maps,
    "pairs": write_pairs,
}


@pytest.fixture
def found(tmp_path, capsys):
    """Returns the exit code of the command and how often it found each code."""

    def check(arguments):
        file = tmp_path / "found.json"
        code = cli.main(["check", *arguments, "--json", str(file)])
        assert file.exists(), capsys.readouterr().err
        document = json.loads(file.read_text())
        assert document["totals"]["error"] == 0 or code == 1
        assert document["totals"]["error"] > 0 or code == 0
        return document

    return check


def counts(document):
    total = Counter()
    for one in document["sets"].values():
        total.update(one["counts"])
    return total


def seeded(name, root):
    root.mkdir()
    code, write, change = DEFECTS[name]
    return code, write(root) if change is None else write(root, change)


@pytest.mark.parametrize("name", DEFECTS)
def test_a_seeded_defect_is_found_under_its_own_code(name, tmp_path, found):
    code, arguments = seeded(name, tmp_path / "set")
    codes = counts(found(arguments))
    assert codes[code] >= 1
    others = {other for other in codes if codes[other] and KINDS[other].severity != "note"} - {code}
    others -= {"mask-invalid"} if code.startswith("polygon-") else set()  # of its only polygon
    assert not others, f"nothing else is wrong, but there is {others}"


def test_there_are_at_least_30_defects_of_as_many_codes():
    assert len({code for code, _, _ in DEFECTS.values()}) == len(DEFECTS) >= 30


@pytest.mark.parametrize("name", [n for n, (code, _, _) in DEFECTS.items() if KINDS[code].severity == "note"])
def test_a_rare_legal_form_is_a_note_and_no_object_is_lost(name, tmp_path, found):
    _, arguments = seeded(name, tmp_path / "set")
    document = found(arguments)
    assert document["totals"]["error"] == document["totals"]["warning"] == 0
    assert not any(finding["fix"] for finding in document["findings"])


@pytest.mark.parametrize("name", CLEAN)
def test_a_clean_set_has_no_finding(name, tmp_path, found):
    (tmp_path / "set").mkdir()
    document = found(CLEAN[name](tmp_path / "set"))
    assert counts(document) == {}


def test_a_finding_names_its_image_and_where_the_box_is(tmp_path, found):
    _, arguments = seeded("partly outside", tmp_path / "set")
    (finding,) = found(arguments)["findings"]
    assert finding["image"].endswith("images/1.png")
    assert finding["place"] == 0
    assert finding["box"] == [50, 8, 80, 28]
    assert finding["fix"] == "clip"


VOC_NAMES = f"class_names=[background, {', '.join(VOC_CLASSES)}]"
REAL = {
    "nuts": (["coco", "nuts/trainval.json", "nuts/images"], {}),
    "bccd": (["voc", "bccd/BCCD"], {"box-zero-area": 2}),
    "voc2012_seg": (["voc-masks", "voc2012_seg", "all", "masks=SegmentationClassAug", VOC_NAMES], {}),
    "duts_tr": (["pairs", "duts_tr/DUTS-TR"], {"count": 1}),  # 600 of 10,553 pairs
    "coco_tiny": (["coco", "coco_tiny/annotations/instances_train2017.json", "coco_tiny/train2017"], {}),
}
"""Real sets, and the real faults in them."""


@pytest.mark.parametrize("name", REAL)
def test_a_real_set_has_no_finding_but_its_real_faults(name, shared_data, found):
    (layout, *words), faults = REAL[name]
    paths = [str(shared_data / word) if (shared_data / word).exists() else word for word in words]
    codes = counts(found(["--layout", layout, *paths]))
    assert {code: n for code, n in codes.items() if KINDS[code].severity != "note"} == faults


@pytest.mark.slow
def test_every_pixel_of_5000_images_is_read_in_20_seconds(tmp_path, found):
    root = tmp_path / "set"

    def edit(document):
        document["images"] = [
            {"id": n, "file_name": f"{n}.png", "width": WIDTH, "height": HEIGHT} for n in range(1, 5001)
        ]
        document["annotations"] = list(objects(10_000))
        for annotation in document["annotations"]:
            annotation["bbox"] = [4.0, 6.0, 20.0, 18.0]
            annotation["segmentation"] = [[4.0, 6.0, 24.0, 6.0, 24.0, 24.0, 4.0, 24.0]]

    root.mkdir()
    arguments = write_coco(root, edit)
    for number in range(3, 5001):
        save_image(root / "images" / f"{number}.png", number)
    start = time.perf_counter()
    document = found(arguments)
    assert time.perf_counter() - start < 20
    assert document["sets"]["data"]["images"] == 5000
    assert counts(document) == {}
