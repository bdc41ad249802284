"""Settings for classes that are rarer than others, for the tasks that have classes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, model_validator
from pydantic_core import PydanticCustomError

from res2net_dense.config.schema import ModelConfig
from res2net_dense.limits import MAX_CLASSES
from res2net_dense.sections import OnlyWith, Section, Share, Weight

MAX_WEIGHT = 1e6


def _check_weights(value: object) -> object:
    """One message for all that may be wrong with a value of several types."""
    if value is None or value == "balanced":
        return value
    numbers = [*value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    if not 0 < len(numbers) <= MAX_CLASSES or not all(
        isinstance(one, int | float) and not isinstance(one, bool) and 0 <= one <= MAX_WEIGHT
        for one in numbers
    ):
        raise PydanticCustomError(
            "class_weights",
            "expected 'balanced', a list with a number from 0 to 1e6 for each class, or names with these",
        )
    return value


ClassWeights = Annotated[
    Literal["balanced"] | list[Weight] | dict[str, Weight] | None,
    BeforeValidator(_check_weights),
]


class ClassWeighted(ModelConfig):
    """A network whose loss may weight the classes."""

    class_weights: ClassWeights = None
    """Weight of each class in the loss: a list in the order of the labels, names with their weights such as
    `{star: 2}` (the others have 1), or `balanced`, the number of objects (of images, of pixels) of
    `data.train` divided by that of the class and by the number of classes; null for equal ones. In a detector
    they act on the classes of boxes, whose background has 1."""

    @model_validator(mode="after")
    def _check_class_weights(self) -> ClassWeighted:
        weights, count = self.class_weights, self.num_classes
        if isinstance(weights, list):
            if count is not None and len(weights) != count:
                raise self.conflict("class_weights", f"must be one for each of {count} classes")
            if not any(weights):
                raise self.conflict("class_weights", "at least one must be above 0")
        return self


class SampledData(Section):
    """How often each image is learned from."""

    sampling: Literal["uniform", "balanced", "repeat_factor"] = "uniform"
    """How often each image comes in an epoch: once, or by the rarest class in it. `balanced` has all classes
    in as many images, with fewer repeats of frequent ones; `repeat_factor` repeats images of classes that are
    in fewer than `repeat_threshold` of the images, sqrt(threshold / share) times (LVIS, arXiv 1908.03195)."""
    repeat_threshold: Annotated[Share, OnlyWith("sampling", "repeat_factor")] = 0.001
    """Share of the images below which `repeat_factor` repeats a class."""

    @model_validator(mode="after")
    def _check_sampling(self) -> SampledData:
        tiles = getattr(self, "tiles", None)
        if self.sampling != "uniform" and tiles is not None and tiles.train != "none":
            raise self.conflict(
                "sampling",
                "goes by the classes of whole images: set data.tiles.train=none, or use model.class_weights",
            )
        return self
