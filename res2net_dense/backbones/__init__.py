"""Res2Net and its family: networks that return named feature maps, and the plain classifiers they come
from.
"""

from res2net_dense.backbones.registry import create_backbone, create_classifier, list_backbones

__all__ = ["create_backbone", "create_classifier", "list_backbones"]
