"""How fast data are read, against detectron2 (https://github.com/facebookresearch/detectron2).

python benchmarks/data.py reading [--objects 860000] [--rounds 1]
python benchmarks/data.py transforms [--images FOLDER --annotations FILE] [--rounds 5] [--workers 2]

`reading` reads a made annotation file of COCO's size; see coco_reading.py.
`transforms` makes training samples of Mask R-CNN; see training_samples.py. Without paths it takes
`coco_tiny` of the folder that RES2NET_DENSE_SHARED_DATA names.
"""

from __future__ import annotations

import argparse

from coco_reading import add_reading
from training_samples import add_transforms


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest="part", required=True)
    add_reading(parts.add_parser("reading", help="annotation files of COCO's size"))
    add_transforms(parts.add_parser("transforms", help="training samples of Mask R-CNN"))
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
