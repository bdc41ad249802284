"""Dense prediction on Res2Net backbones: detection, instance and semantic segmentation, salient objects."""

from res2net_dense.backbones import create_backbone, create_classifier, list_backbones
from res2net_dense.hub import get_model, list_models, predict_image
from res2net_dense.version import __version__

__all__ = [
    "__version__",
    "create_backbone",
    "create_classifier",
    "get_model",
    "list_backbones",
    "list_models",
    "predict_image",
]
