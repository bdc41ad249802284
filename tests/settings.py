"""Every key of every schema, with values that it takes: `from settings import every_key`."""

import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError

from res2net_dense.config.load import CONFIGS

CANDIDATES = (
    *(True, False, 0, 1, 2, 3, 5, 64, 0.25, 0.5, 0.75, 2.0, None),
    *([0.25, 0.5], [0.5, 0.75], [1, 2], [3], [2, 4, 6], [3, 6, 9], [4, 8, 16, 32, 64], ["res3"], ["a", "b"]),
    *([0.5, 1.0], [1.0, 2.0, 3.0], [0.5], "one", "other", "cpu", {"a": [1.0, 0.5]}),
)


class Key(NamedTuple):
    """A setting, in one of the forms of its section."""

    task: str
    path: tuple[str, ...]
    tags: dict[tuple[str, ...], str]
    """What chooses the form: `{("model", "arch"): "mask_rcnn"}`."""
    values: list[Any]
    """Some that it takes alone, which may not fit other settings."""
    default: Any
    """`...` where it is required."""

    @property
    def name(self) -> str:
        return ".".join(self.path)


def every_key() -> Iterator[Key]:
    for task, schema in CONFIGS.items():
        yield from keys_below(task, schema, (), {})


def keys_below(task, schema, path, tags):
    for name, field in schema.model_fields.items():
        here = (*path, name)
        forms = list(sections(field.annotation))
        for form in forms:
            tag = next((one for one in ("arch", "layout") if one in form.model_fields), None)
            choices = get_args(form.model_fields[tag].annotation) if tag else (None,)
            for choice in choices:
                more = {(*here, tag): choice} if tag else {}
                yield from keys_below(task, form, here, tags | more)
        if not forms and name not in ("task", "layout"):
            default = ... if field.is_required() else field.default
            values = list(allowed(Annotated[(field.annotation, "", *field.metadata)], field.annotation))
            yield Key(task, here, tags, values, default)


def sections(annotation):
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from sections(argument)


def allowed(annotation, plain):
    """Those of the literals of an annotation, and of `CANDIDATES`, that it takes."""
    adapter = TypeAdapter(annotation, config={"strict": True, "allow_inf_nan": False})
    for value in (*literals(plain), *CANDIDATES):
        try:
            adapter.validate_python(value)
        except ValidationError:
            continue
        yield value


def literals(annotation):
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    elif get_origin(annotation) in (Union, types.UnionType):
        for argument in get_args(annotation):
            yield from literals(argument)


def nested(path, value):
    """`nested(("a", "b"), 1)` is `{"a": {"b": 1}}`."""
    for key in reversed(path):
        value = {key: value}
    return value


def merged(base, change):
    """Mappings merge, everything else replaces."""
    if not (isinstance(base, dict) and isinstance(change, dict)):
        return change
    return base | {key: merged(base.get(key), value) for key, value in change.items()}


MINIMAL = {
    "backbone": {"name": "test_res2net"},
    "train": {"iterations": 100, "batch_size": 64, "optimizer": {"lr": 0.1}},
}
MODELS = {"detection": {"arch": "faster_rcnn"}, "semantic_segmentation": {"arch": "unet"}}


def smallest(task):
    """The shortest configuration of a task."""
    return {"task": task, **MINIMAL, **({"model": MODELS[task]} if task in MODELS else {})}


def around(key, keys):
    """The shortest configuration in which a key may stand, without the key."""
    config = smallest(key.task)
    for path, tag in key.tags.items():
        config = merged(config, nested(path, tag))
    for other in keys:
        same_place = other[:4:2] == key[:4:2] and other.path[:-1] == key.path[:-1]
        if same_place and other.default is ... and other.path not in (key.path, ("backbone", "name")):
            value = config
            for part in other.path:
                value = value.get(part) if isinstance(value, dict) else None
            if value is None:
                config = merged(config, nested(other.path, other.values[0]))
    return config
