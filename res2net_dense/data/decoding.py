"""Decoding JPEGs with torchvision: Pillow's pixels to the bit, in less time and memory (docs/adr/0031)."""

from __future__ import annotations

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile


def decode_jpeg(image: Image.Image) -> np.ndarray | None:
    """Decode a file that Pillow has opened and not yet loaded; its EXIF orientation is not applied.

    Returns:
        (H, W, 3) uint8 RGB, writable. None where Pillow has to decode it, or to say what is wrong: another
        format, inks instead of colours, damage, a torchvision without its decoder.
    """
    if not isinstance(image, JpegImageFile) or image.format != "JPEG" or image.mode not in ("L", "RGB"):
        return None  # a JpegImageFile of another format has several images
    import torch
    from torchvision.io import ImageReadMode
    from torchvision.io import decode_jpeg as decode

    try:
        data = torch.from_numpy(np.fromfile(image.filename, dtype=np.uint8))
        pixels: np.ndarray = decode(data, mode=ImageReadMode.RGB).permute(1, 2, 0).numpy()
    except Exception:
        return None
    return pixels if pixels.shape[:2] == (image.height, image.width) else None
