"""Small data sets of drawn shapes, to learn from in minutes without a download."""

LAYOUTS = {
    "coco": {"train": 400, "val": 40, "size": 160},
    "imagenet": {"train": 4000, "val": 500, "size": 64},
    "voc": {"train": 400, "val": 100, "size": 160},
    "yolo": {"train": 400, "val": 40, "size": 160},
    "duts": {"train": 400, "val": 100, "size": 160},
    "warm": {"train": 300, "val": 60, "size": 96},
}
"""The layouts in which a set can be drawn: the usual number of its images, and their side in pixels."""
