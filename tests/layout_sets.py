"""A toy set of each layout whose files are read one by one: `from layout_sets import ...`."""

import json

import numpy as np

from res2net_dense.data.layouts import (
    ClassesCsvPart,
    ClassFoldersPart,
    CocoPart,
    ImageMasksPart,
    LabelmePart,
    VocBoxesPart,
    VocMasksPart,
    YoloPart,
)


def as_labelme(root):
    """A json for each image of a set in COCO's layout, next to it."""
    for split in ("train", "val"):
        content = json.loads((root / "annotations" / f"{split}.json").read_text())
        names = {category["id"]: category["name"] for category in content["categories"]}
        for image in content["images"]:
            shapes = [
                {"label": names[one["category_id"]], "points": np.reshape(polygon, (-1, 2)).tolist(),
                 "group_id": one["id"], "shape_type": "polygon"}
                for one in content["annotations"] if one["image_id"] == image["id"]
                for polygon in one["segmentation"]
            ]  # fmt: skip
            size = {"imageHeight": image["height"], "imageWidth": image["width"]}
            text = json.dumps({"shapes": shapes, "imagePath": image["file_name"], **size})
            (root / split / image["file_name"]).with_suffix(".json").write_text(text)


def with_csv(root):
    """A csv file for the images in class folders."""
    for split in ("train", "val"):
        files = sorted((root / split).glob("*/*.png"))
        lines = [f"{file.parent.name}/{file.name},{file.parent.name}" for file in files]
        (root / split / "labels.csv").write_text("\n".join(["filename,label", *lines]))


PREPARED = {"labelme": as_labelme, "classes-csv": with_csv}
"""What is written into the toy set first."""
LAYOUTS = {
    "coco": ("coco", lambda root: CocoPart(annotations=f"{root}/annotations/val.json", images=f"{root}/val")),
    "voc-boxes": ("voc", lambda root: VocBoxesPart(root=str(root), split="val")),
    "voc-masks": ("voc", lambda root: VocMasksPart(root=str(root), split="val")),
    "image-masks": ("duts", lambda root: ImageMasksPart(root=f"{root}/val")),
    "class-folders": ("imagenet", lambda root: ClassFoldersPart(root=f"{root}/val")),
    "classes-csv": ("imagenet", lambda root: ClassesCsvPart(csv=f"{root}/val/labels.csv")),
    "yolo": ("yolo", lambda root: YoloPart(yaml=str(root), split="val")),
    "labelme": ("coco", lambda root: LabelmePart(layout="labelme", root=f"{root}/val")),
}
