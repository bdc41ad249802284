"""How fast data are read, against detectron2 (https://github.com/facebookresearch/detectron2).

python benchmarks/data.py reading [--objects 860000] [--rounds 1]

`reading` reads a made annotation file of COCO's size; see coco_reading.py.
"""

from __future__ import annotations

import argparse

from coco_reading import add_reading


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest="part", required=True)
    add_reading(parts.add_parser("reading", help="annotation files of COCO's size"))
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
