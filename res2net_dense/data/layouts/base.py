"""What all layouts share: the base of their config parts, and the one way to open a data set."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, TypeVar, get_args

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer
from pydantic_core import PydanticCustomError

from res2net_dense.data.header_sizes import known_size
from res2net_dense.data.images import read_image
from res2net_dense.data.pixels import RGB, PixelFormat
from res2net_dense.data.regions import open_pixels, read_through
from res2net_dense.errors import ConfigError, DatasetError
from res2net_dense.findings import Finding, Findings
from res2net_dense.sections import Section
from res2net_dense.types import Entry, Sample, Source


class Request(NamedTuple):
    """How a part is to be opened; see `open_source`."""

    train: bool
    class_names: tuple[str, ...] | None = None
    needs: frozenset[str] = frozenset()
    difficult: bool = True
    strict: bool = True
    form: PixelFormat = RGB
    tiled: bool = False


def inspect_image(
    path: Path, place: int, *, thorough: bool, form: PixelFormat = RGB
) -> tuple[tuple[int, int] | None, list[Finding]]:
    """Look at the image file of a sample, as `types.Source.inspect` does.

    Returns:
        Its (height, width), None if it has none, and what is wrong with it.
    """
    try:
        return (read_image(path, form).shape[:2] if thorough else known_size(path)), []
    except DatasetError as error:
        text = str(error).removeprefix(f"{path}: ")
        return None, [Finding(error.code or "image-unreadable", str(path), text, str(path), place)]


def inspect_regions(
    path: Path, place: int, *, thorough: bool, form: PixelFormat = RGB
) -> tuple[tuple[int, int] | None, list[Finding]]:
    """As `inspect_image`, of an image that is read in tiles only."""
    try:
        pixels = open_pixels(path, form)
        if thorough:
            read_through(pixels)
        return pixels.size, []
    except DatasetError as error:
        text = str(error).removeprefix(f"{path}: ")
        return None, [Finding(error.code or "image-unreadable", str(path), text, str(path), place)]


class Inspected:
    """A source whose samples are inspected by reading them; layouts that can tell more say more."""

    findings: Findings
    looked_into: Collection[int] = ()
    """See `types.Source`."""
    form: PixelFormat = RGB
    """What the images are read as; set by `open_source`."""
    tiled: bool = False
    """Whether images are read in tiles, so that TIFFs may be larger than others; set by `open_source`."""

    def __len__(self) -> int:
        raise NotImplementedError

    def sample(self, index: int) -> Sample:
        raise NotImplementedError

    def file(self, index: int) -> Path | None:
        """See `types.Source`."""
        return None

    def entries(self) -> Iterator[Entry]:
        """See `types.Source`; by default with the images alone."""
        for index in range(len(self)):
            file = self.file(index)
            yield Entry(str(index), () if file is None else (file,), 0)

    def classes(self) -> Sequence[tuple[int | str | None, int]]:
        """See `types.Source`."""
        return []

    def inspect(self, index: int, *, thorough: bool) -> list[Finding]:
        """See `types.Source`."""
        if thorough:
            try:
                self.sample(index)
            except DatasetError as error:
                file, _, text = str(error).partition(": ")
                return [Finding(error.code or "image-unreadable", file, text, file, index)]
        return []

    def check(self) -> None:
        """See `types.Source`: by default there is nothing to ask."""


class Part(Section):
    """One part of a data set, as a configuration names it; each layout has its own subclass.

    The field `layout` is a literal with a default, so that it may be left out.
    """

    joins: ClassVar[bool] = False
    """Whether a source can be made of several parts."""
    gives: ClassVar[frozenset[str]]
    """Keys of a `Sample` that the layout has annotations for."""
    toy: ClassVar[str]
    """What a message offers where the data are missing: `res2net-dense toy --layout <toy>`."""
    places: ClassVar[tuple[str, ...]] = ("root",)
    """The keys whose files and folders must be there."""

    layout: str
    """How the files are laid out."""

    @classmethod
    def open(cls, parts: Sequence[Any], request: Request) -> Source:
        """Open parts of this class, one unless the layout joins them, as `open_source` does."""
        raise NotImplementedError


P = TypeVar("P", bound=Part)


def open_source(
    parts: Sequence[Part],
    *,
    train: bool,
    class_names: Sequence[str] | None = None,
    needs: Collection[str] = (),
    difficult: bool = True,
    strict: bool = True,
    form: PixelFormat = RGB,
    tiled: bool = False,
) -> Any:
    """Open parts of one layout, joined where there are several; the same ones are read once in a process.

    Args:
        train: whether the set is for training. An evaluation accepts classes without an image, and takes
            CIFAR's test part.
        class_names: by label; None takes those of the data.
        needs: keys of a `Sample`, such as `boxes`, that a task uses; faults of other annotations are ignored.
        difficult: whether objects that VOC marks as difficult are learned.
        strict: whether the first error in the files is raised. Else `findings` of the source has all that can
            be passed over, and the source is without what is wrong.
        form: what the images are read as.
        tiled: whether they are read in tiles, so that TIFFs with boxes may be larger than others.

    Returns:
        A `Source`, with what the protocol in `types` that the needs ask for has.

    Raises:
        ConfigError: the parts or class names do not fit each other, or the layout has no such annotations.
        DatasetError: a file is missing, broken or inconsistent; names the first problem.
    """
    if not parts:
        raise ConfigError("no data set is named; give at least one part")
    places = [getattr(part, key) for part in parts for key in part.places]
    if missing := set(needs) - parts[0].gives:
        remedy = "; use a faster_rcnn config for boxes alone" if missing == {"masks"} else ""
        raise ConfigError(
            f"{places[0]} is in the layout {parts[0].layout}, which has no "
            f"{', '.join(sorted(missing))}{remedy}"
        )
    for path in places:
        if not Path(path).exists():
            raise DatasetError(
                f"no data set at {path} (looked in {Path.cwd()}); check the path, or make a toy set: "
                f"`res2net-dense toy --layout {parts[0].toy} --output datasets/toy`",
                "file-missing",
            )
    names = None if class_names is None else tuple(class_names)
    return _open_once(tuple(parts), Request(train, names, frozenset(needs), difficult, strict, form, tiled))


@functools.lru_cache(maxsize=8)
def _open_once(parts: tuple[Part, ...], request: Request) -> Any:
    source: Any = type(parts[0]).open(parts, request)
    source.form, source.tiled = request.form, request.tiled
    for name in source.class_names if request.strict else ():
        if name != name.encode(errors="ignore").decode():  # no file of a run could have it
            place = getattr(parts[0], parts[0].places[0])
            raise DatasetError(f"{place}: the class name {name!r} is not UTF-8: rename the class")
    return source


def find_layout(union: Any) -> BeforeValidator:
    """Fill in the layout of a part: that of the first class of the union with most of its keys."""
    kinds: tuple[type[Part], ...] = get_args(union)

    def fill(value: object) -> object:
        if not isinstance(value, dict) or "layout" in value:
            return value
        likeliest = max(kinds, key=lambda kind: len(value.keys() & kind.model_fields.keys()))
        return {"layout": likeliest.model_fields["layout"].default, **value}

    return BeforeValidator(fill)


def _check_joined(parts: list[P]) -> list[P]:
    layouts = list(dict.fromkeys(part.layout for part in parts))
    problem = None
    if len(layouts) > 1:
        problem = f"parts that are joined must have one layout, not {' and '.join(layouts)}"
    elif len(parts) > 1 and not parts[0].joins:
        problem = f"the layout {layouts[0]} takes one part, not {len(parts)}; join the files first"
    if problem is not None:
        raise PydanticCustomError("parts", "{problem}", {"problem": problem})
    return parts


def _list_parts(value: object) -> object:
    """One part as a list of it; a path alone does not tell of which key it is."""
    if isinstance(value, str):
        context = {"example": f"{{root: {value}}}"}
        raise PydanticCustomError("parts", "expected the keys of a layout, such as {example}", context)
    return [value] if isinstance(value, dict | Part) else value


Parts = Annotated[
    list[P],
    Field(min_length=1),
    BeforeValidator(_list_parts),
    AfterValidator(_check_joined),
    PlainSerializer(lambda parts: parts[0] if len(parts) == 1 else parts, return_type=Any),
]
"""One part, or a list of parts that are joined."""
