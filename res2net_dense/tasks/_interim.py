import logging

import numpy as np

from res2net_dense.data.cifar import Cifar
from res2net_dense.data.coco import CocoDataset
from res2net_dense.data.duts import SaliencyDataset
from res2net_dense.data.imagenet import ImageFolder
from res2net_dense.data.voc import VocDetection, VocSegmentation
from res2net_dense.engine import distributed
from res2net_dense.errors import DatasetError

_log = logging.getLogger(__name__)

for c in (CocoDataset, VocDetection, SaliencyDataset):
    c.name = property(lambda self: self.source)
for c in (Cifar, ImageFolder, VocSegmentation):
    c.name = property(lambda self: str(self.root))
SaliencyDataset.class_names = ("salient object",)


def _cls(self):
    if getattr(self, "left_out", ""):
        _log.warning("%s: left out: %s", self.root, self.left_out)
    if not len(self):
        raise DatasetError(
            f"{self.root}: no picture in any class folder; check data.val, or set data.val=null to train without evaluation"
        )
    counts = np.bincount(self.labels, minlength=len(self.class_names))
    empty = [name for name, count in zip(self.class_names, counts, strict=True) if not count]
    if empty and distributed.is_main():
        _log.warning(
            "%s: %d of %d classes have no picture, such as %s; their accuracy is n/a",
            self.root,
            len(empty),
            len(self.class_names),
            empty[0],
        )


def _det(self):
    if missing := self.missing_files():
        raise DatasetError(
            f"{len(missing)} of {len(self)} pictures of {self.source} are missing: {', '.join(missing[:5])}"
        )
    if isinstance(self, VocDetection):
        for reason, count in self.dropped.items():
            _log.warning("%s: %d objects left out: %s", self.source, count, reason)


Cifar.check = ImageFolder.check = _cls
CocoDataset.check = VocDetection.check = _det
