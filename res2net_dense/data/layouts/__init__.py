"""Layouts of data sets, one module each: its part of a configuration, reading, listing and class names.

`open_source` opens a data set of any layout; whoever uses it does not know which.
"""

from res2net_dense.data.layouts.base import Part, Parts, find_layout, open_source
from res2net_dense.data.layouts.cifar import CifarPart
from res2net_dense.data.layouts.class_folders import ClassFoldersPart
from res2net_dense.data.layouts.classes_csv import ClassesCsvPart
from res2net_dense.data.layouts.coco import CocoPart
from res2net_dense.data.layouts.image_masks import ImageMasksPart
from res2net_dense.data.layouts.labelme import LabelmePart
from res2net_dense.data.layouts.voc_boxes import VocBoxesPart
from res2net_dense.data.layouts.voc_masks import VocMasksPart
from res2net_dense.data.layouts.yolo import YoloPart

__all__ = [
    "CifarPart",
    "ClassFoldersPart",
    "ClassesCsvPart",
    "CocoPart",
    "ImageMasksPart",
    "LabelmePart",
    "Part",
    "Parts",
    "VocBoxesPart",
    "VocMasksPart",
    "YoloPart",
    "find_layout",
    "open_source",
]
