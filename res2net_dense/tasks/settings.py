"""The settings of a configuration as a task changes them, and as a network takes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from res2net_dense.config import Config
from res2net_dense.config.effects import idle_settings
from res2net_dense.data.layouts import Part
from res2net_dense.errors import ConfigError

C = TypeVar("C", bound=Config)


def updated(config: C, **sections: Mapping[str, Any]) -> C:
    """Return the config with other values in its sections: `updated(config, model={"num_classes": 3})`."""
    return config.model_copy(
        update={name: getattr(config, name).model_copy(update=dict(v)) for name, v in sections.items()}
    )


def on_split(config: C, split: str) -> C:
    """Return the config with `data.val` on other images: those of `data.train`, or those of another split of
    the same data.

    Raises:
        ConfigError: there are no such images.
    """
    if split == "train" and config.data.train is not None:
        return updated(config, data={"val": config.data.train})
    parts: Any = config.data.val
    if not parts:
        raise ConfigError(
            f"--split {split}: data.val is not set, so it has no splits; set it to these images"
        )
    if not all(hasattr(part, "split") for part in parts):
        raise ConfigError(
            f"--split {split}: the data in data.val have no splits; name these images with data.val=..."
        )
    parts = [part.model_copy(update={"split": split}) for part in parts]
    for idle in (one for part in parts for one in idle_settings(part)):
        raise ConfigError(f"--split {split}: {idle.message()}")
    return updated(config, data={"val": parts})


def places_of_val(config: Config) -> list[str]:
    """The files and folders that the parts of `data.val` name."""
    parts: Any = config.data.val or ()
    return [getattr(part, key) for part in parts if isinstance(part, Part) for key in part.places]


def network_settings(config: Config, load_weights: bool) -> dict[str, Any]:
    """Return the arguments of a model's builder: `backbone` and the section `model`, with known classes."""
    if config.model.num_classes is None:
        raise ConfigError("model.num_classes is unknown; set it, or data.train, whose classes are counted")
    if config.model.pixel_mean is None or config.model.pixel_std is None:
        raise ConfigError(
            "model.pixel_mean and pixel_std are unknown; set them (`res2net-dense check --statistics` finds "
            "them out)"
        )
    # Not every network has each option: only those that were set are handed over. detectron2 has defaults of
    # its own for norm and freeze_at.
    backbone = config.backbone.model_dump(exclude_defaults=True)
    backbone |= {"norm": config.backbone.norm, "freeze_at": config.backbone.freeze_at}
    backbone |= {"in_channels": config.data.channels} if config.data.channels != 3 else {}
    model = config.model.model_dump(exclude={"weights"})
    if not isinstance(model.get("class_weights", []), list):
        model["class_weights"] = None  # not yet numbers, see `rare_classes`: nothing is trained
    return {"backbone": backbone | ({} if load_weights else {"weights": None}), **model}
