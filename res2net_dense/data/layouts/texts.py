"""The encodings of text files: what is beyond doubt is read, else an error names the likely one."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from res2net_dense.errors import DatasetError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_ENCODINGS = ("gb18030", "cp1252", "shift_jis", "euc_kr", "big5", "latin-1")
"""Tried in this order."""


def decode(file: Path, content: bytes, is_right: Callable[[str], bool] | None = None) -> tuple[str, str]:
    """Decode the content of a text file: UTF-8, what its byte order mark says, or what gives the right text.

    Args:
        file: for messages.
        content: of the file.
        is_right: whether a text is the right one, such as names that files have.

    Returns:
        The text, and its encoding where only `is_right` tells it, else "".

    Raises:
        DatasetError: the encoding is in doubt.
    """
    marked = next((encoding for mark, encoding in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(marked)
        if is_right is None or content.isascii() or is_right(text):
            return text, ""
        return _other_text(content, is_right) or (text, "")  # two letters in GBK may be UTF-8 too
    except UnicodeDecodeError as error:
        if is_right is not None and (found := _other_text(content, is_right)):
            return found
        raise DatasetError(
            f"{file}: not text in UTF-8 ({error.reason}), perhaps {_likely(content)}; save the file as UTF-8",
            "file-format",
        ) from error


def _other_text(content: bytes, is_right: Callable[[str], bool]) -> tuple[str, str] | None:
    for encoding in _ENCODINGS:
        with suppress(UnicodeDecodeError):
            if is_right(text := content.decode(encoding)):
                return text, encoding
    return None


def _likely(content: bytes) -> str:
    """Chinese has two bytes a letter, so they come together; those of European languages stand alone."""
    runs = re.findall(rb"[\x80-\xff]+", content)
    with suppress(UnicodeDecodeError):
        content.decode("gb18030")
        if 2 * sum(len(run) > 1 for run in runs) > len(runs):
            return "GBK"
    return "Latin-1 (Windows-1252)"
