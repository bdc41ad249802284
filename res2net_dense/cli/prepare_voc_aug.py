"""Make VOC's augmented training set for segmentation: SBD's masks as palette PNGs, and the list `trainaug`.

    res2net-dense prepare-voc-aug --voc VOCdevkit/VOC2012 --sbd benchmark_RELEASE/dataset

writes `SegmentationClassAug/*.png` (12,031 masks) and `ImageSets/Segmentation/trainaug.txt` (10,582 names:
SBD's train and val lists and VOC's train list without VOC's val list) into the VOC folder, or into --output.
Images that VOC has a mask for keep VOC's, whose borders are 255 (ignored). Files that are there already are
never changed. SBD: Hariharan et al., "Semantic contours from inverse detectors", ICCV 2011,
http://home.bharathh.info/pubs/codes/SBD/download.html
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--voc", type=Path, required=True, help="folder VOC2012 of VOCdevkit")
    parser.add_argument("--sbd", type=Path, required=True, help="folder dataset of benchmark_RELEASE")
    parser.add_argument("--output", type=Path, help="where to write (default: the VOC folder)")
    parser.add_argument("--overwrite", action="store_true", help="replace masks and the list that exist")


def main(args: argparse.Namespace) -> int:
    from res2net_dense.cli._prepare_voc_aug import prepare

    prepare(args.voc, args.sbd, args.output or args.voc, overwrite=args.overwrite)
    return 0
