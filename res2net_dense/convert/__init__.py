"""Checkpoints of every library that has this family: read, explained, and written with any library's names.

checkpoint = read_checkpoint("mask_rcnn_r2_101.pth")
print(checkpoint.report.text())
backbone = create_backbone(checkpoint.name, **checkpoint.options)
"""

from res2net_dense.convert.checkpoint import read_checkpoint
from res2net_dense.convert.dialects import list_dialects
from res2net_dense.convert.load import check_weights, load_backbone_weights, open_named_weights
from res2net_dense.convert.report import Checkpoint, Report
from res2net_dense.convert.write import to_dialect, write_checkpoint

__all__ = [
    "Checkpoint",
    "Report",
    "check_weights",
    "list_dialects",
    "load_backbone_weights",
    "open_named_weights",
    "read_checkpoint",
    "to_dialect",
    "write_checkpoint",
]
