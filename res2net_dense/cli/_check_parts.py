"""The data sets that `res2net-dense check` reads: those of a configuration, or one given in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

from pydantic import ValidationError

from res2net_dense.config import load_config
from res2net_dense.config.effects import idle_settings
from res2net_dense.config.schema import DataConfig
from res2net_dense.config.yaml_text import parse_yaml
from res2net_dense.data.layouts import Part, open_source
from res2net_dense.data.pixels import PixelFormat
from res2net_dense.data.statistics import find_channels
from res2net_dense.errors import ConfigError, DatasetError, did_you_mean
from res2net_dense.findings import Finding, Findings
from res2net_dense.tasks import get_task
from res2net_dense.tasks.pixels import pixel_format

READING = ("class_names", "channels", "value_range")
"""Keys of the section `data` that concern the images of any layout."""
SHORT_NAMES = {"voc": "voc-boxes", "pairs": "image-masks", "folders": "class-folders"}


class Opened(NamedTuple):
    """A data set that was asked for."""

    parts: Sequence[Part]
    source: Any
    """A `Source`; None where it cannot be opened at all."""
    findings: Findings
    """Why it cannot."""

    @property
    def places(self) -> list[Path]:
        """Files and folders of the data."""
        return [Path(getattr(part, key)) for part in self.parts for key in part.places]


def of_config(name: str, overrides: Sequence[str]) -> dict[str, Opened]:
    """The sets of a configuration by their keys; raises `ConfigError`, `DatasetError` if one is missing."""
    config = load_config(name, overrides)
    task = get_task(config.task)
    sets: dict[str, Opened] = {}
    for key in ("train", "val"):
        parts = getattr(config.data, key)
        if parts is None:
            continue
        options = {"form": pixel_format(config), "class_names": config.data.class_names}
        opened = _open(parts, train=key == "train", **options, **task.source_options(config))
        sets[f"data.{key}"] = opened
        if opened.source is not None and key == "train":
            config = task.adapt(config, opened.source)
    if not sets:
        raise ConfigError(f"{name}: neither data.train nor data.val is set; name the data there")
    return sets


def of_layout(name: str, words: Sequence[str]) -> dict[str, Opened]:
    """The set that is given in words, `coco my/train.json my/images`; raises as `of_config`."""
    part, reading = part_of(name, words)
    form = PixelFormat(reading.channels, reading.value_range)
    options = {"train": True, "class_names": reading.class_names, "form": form}
    try:
        opened = _open([part], needs=part.gives, **options)
    except ConfigError:  # boxes alone are a data set too
        if "masks" not in part.gives:
            raise
        opened = _open([part], needs=part.gives - {"masks"}, **options)
    if opened.source is not None and "channels" not in reading.model_fields_set:
        opened.source.form = form._replace(channels=find_channels(opened.source))
    return {"data": opened}


def part_of(name: str, words: Sequence[str]) -> tuple[Part, DataConfig]:
    """The part of a layout from its paths in order (`Part.places`, then other keys that it must have), and
    `key=value`, of it or of how the images are read (`READING`); raises `ConfigError`.
    """
    kinds = layouts()
    full = SHORT_NAMES.get(name, name)
    if full not in kinds:
        known = {*kinds, *SHORT_NAMES}
        raise ConfigError(f"--layout {name!r}: unknown layout; {did_you_mean(name, known)}")
    kind = kinds[full]
    fields = {key: field for key, field in kind.model_fields.items() if key != "layout"}
    order = [*kind.places, *(k for k, f in fields.items() if f.is_required() and k not in kind.places)]
    order += [key for key in ("split",) if key in fields and key not in order]
    keys = {*fields, *READING}
    settings = {word: key for word in words if "=" in word and (key := word.partition("=")[0]) in keys}
    given = [word for word in words if word not in settings]
    values: dict[str, Any] = dict(zip(order, given, strict=False))
    for word, key in settings.items():
        values[key] = parse_yaml(word.partition("=")[2], lambda _: f"--layout {name}")
    nullable = {key for key in order if type(None) in get_args(fields[key].annotation)}
    optional = nullable | {key for key in order if not fields[key].is_required()}
    values = dict.fromkeys(nullable) | values
    missing = [key for key in order if key not in values and key not in optional]
    if missing or len(given) > len(order):
        usage = " ".join(f"[{key.upper()}]" if key in optional else key.upper() for key in order)
        others = " ".join(f"[{key}=...]" for key in (*fields, *READING) if key not in order)
        problem = f"{missing[0].upper()} is missing" if missing else f"{given[len(order)]!r} is too much"
        raise ConfigError(f"{problem}; write: res2net-dense check --layout {name} {usage} {others}".rstrip())
    own = {key: value for key, value in values.items() if key in fields}
    reading = {key: value for key, value in values.items() if key not in fields}
    try:
        part = kind.model_validate({"layout": full, **own})
        for idle in idle_settings(part):
            raise ConfigError(f"--layout {name}: {idle.message()}")
        return part, DataConfig.model_validate(reading)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ConfigError(f"--layout {name}: {key} = {first['input']!r:.80}: {first['msg']}") from None


def layouts() -> Mapping[str, type[Part]]:
    """The class of each layout, by its name in `layout`."""
    found: dict[str, type[Part]] = {}
    kinds = list(Part.__subclasses__())
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        for name in get_args(kind.model_fields["layout"].annotation):
            found.setdefault(name, kind)
    return dict(sorted(found.items()))


def _open(parts: Sequence[Part], **options: Any) -> Opened:
    findings = Findings()
    try:
        return Opened(parts, open_source(parts, strict=False, **options), findings)
    except DatasetError as error:
        opened = Opened(parts, None, findings)
        if not all(place.exists() for place in opened.places):
            raise
        file, _, text = str(error).partition(": ")
        if not text:
            file, text = str(opened.places[0]), str(error)
        findings.add(Finding(getattr(error, "code", "") or "file-format", file, text))
        return opened
