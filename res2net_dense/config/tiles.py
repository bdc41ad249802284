"""The section of tiles, for the tasks whose images may be large."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from res2net_dense.config.schema import DataConfig
from res2net_dense.limits import MAX_PIXELS
from res2net_dense.sections import Edge, Fraction, OnlyWith, Section


class TilesConfig(Section):
    """How images that are larger than a tile are divided; every tile is then resized as an image would be."""

    size: Edge
    """Side of a tile in pixels of the image as it is."""
    overlap: Annotated[int, Field(ge=0, le=MAX_PIXELS)] = 0
    """Pixels that neighbouring tiles share in evaluation and prediction. Objects up to this size are seen
    whole by one tile at least."""
    train: Literal["random", "grid", "none"] = "random"
    """What is learned from: random tiles, as many of each image as its grid has, the grid of the evaluation,
    or whole images."""

    @model_validator(mode="after")
    def _check_overlap(self) -> TilesConfig:
        if self.overlap >= self.size:
            raise self.conflict("overlap", f"must be below size = {self.size}")
        return self


class DetectionTilesConfig(TilesConfig):
    """How images that are larger than a tile are divided; every tile is then resized as an image would be."""

    min_visible: Annotated[Fraction, OnlyWith("train", "random", "grid")] = 0.4
    """Share of an object's box that must be inside a tile for the object to be learned there, clipped to the
    tile; below it the object counts as background."""


class TiledData(DataConfig):
    """The images, and how they are prepared."""

    tiles: TilesConfig | None = None
    """Tiles of large images, in training, evaluation and prediction; null takes images whole."""
