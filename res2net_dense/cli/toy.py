"""Draw a small data set of shapes on textured grounds, to learn from in minutes without a download.

    res2net-dense toy --output datasets/toy

writes `datasets/toy/coco/{train,val}/*.png` and `datasets/toy/coco/annotations/{train,val}.json`. The same
arguments give the same bytes. Later shapes hide earlier ones, and annotations cover what is visible. Each
class tends to a hue of its own, as things do, but a fifth of the shapes have any colour. Some training
images are empty, and the category ids have gaps, as in real files.

    res2net-dense toy --layout imagenet --output datasets/toy

writes `datasets/toy/imagenet/{train,val}/<class>/*.png` for classification: ten classes, one shape per image
on a cluttered ground, of any size, turn and colour, so that the colour does not tell the class.

    res2net-dense toy --layout voc --output datasets/toy

writes the scenes of `coco` to `datasets/toy/voc` in VOC's layout, as JPEG, for detection and semantic
segmentation; here only a twentieth of the shapes have any colour. There are `Annotations/*.xml`,
`SegmentationClass/*.png` (0 background, 1 to 4 the classes of `class_names.txt`, 255 on a border of two
pixels around what is seen of a shape) and `ImageSets/{Main,Segmentation}/{train,val,trainval}.txt`. The
numbers of the validation images follow those of the training images. A shape is `truncated` if any of it
is hidden, and `difficult` if less than 0.6 of it is visible.

    res2net-dense toy --layout yolo --output datasets/toy

writes the scenes of `coco` to `datasets/toy/yolo` in YOLO's layout: `data.yaml`, `images/{train,val}/*.png`
and `labels/{train,val}/*.txt` with an outline a line.

    res2net-dense toy --layout duts --output datasets/toy

writes `datasets/toy/duts/{train,val}/images/*.jpg` and `masks/*.png` for salient object detection: one to
three shapes of one piece and of any hue that stand out from a duller, grainy ground. The images have many
sizes; the masks are smooth at the outlines as those of DUTS, above 128 where most of a pixel is covered.

    res2net-dense toy --layout warm --output datasets/toy

writes `datasets/toy/warm` in VOC's layout for semantic segmentation of images of four channels (RGBA PNGs):
the scenes of `coco` in any colours, where shapes are of the class cold or warm, which the fourth channel
alone tells, a noisy temperature.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from res2net_dense.cli._shared import SEED, say, whole
from res2net_dense.toy import LAYOUTS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--output", type=Path, required=True, help="folder to write to, such as datasets/toy")
    add("--layout", choices=list(LAYOUTS), default="coco", help="what to draw (coco)")
    add("--seed", type=SEED, default=0, help="another number draws other images (0)")
    add("--overwrite", action="store_true", help="replace a toy set of other arguments")
    sides = "side of the square images in pixels, of those of duts the longer edge"
    count, side = whole(0, 1_000_000), whole(64, 2048)
    for name, kind, what in (
        ("train", count, "training images"),
        ("val", count, "validation images"),
        ("size", side, sides),
    ):
        usual = ", ".join(f"{numbers[name]} for {key}" for key, numbers in LAYOUTS.items())
        add(f"--{name}", type=kind, help=f"{what} ({usual})")


def main(args: argparse.Namespace) -> int:
    from res2net_dense.toy.layouts import make

    usual = LAYOUTS[args.layout]
    numbers = usual | {name: getattr(args, name) for name in usual if getattr(args, name) is not None}
    say(make(args.output, args.layout, {"seed": args.seed, **numbers}, overwrite=args.overwrite))
    return 0
