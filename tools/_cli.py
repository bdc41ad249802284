"""What the tools share: logging, and user errors as one line with exit code 1."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Callable

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for its version

from res2net_dense.errors import Res2NetDenseError


def run(main: Callable[[argparse.Namespace], int | None], parser: argparse.ArgumentParser) -> None:
    """Parse the command line and call `main`; `--debug` shows the traceback of a user error too."""
    parser.add_argument("--debug", action="store_true", help="show tracebacks and debug messages")
    args = parser.parse_intermixed_args()  # overrides may stand between options
    level = logging.DEBUG if args.debug else logging.WARNING
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    logging.getLogger("res2net_dense").setLevel(level)
    if not args.debug and os.environ.get("RANK", "0") == "0":  # what a backbone took is always said, once
        logging.getLogger("res2net_dense.convert").setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        sys.exit(main(args))
    except Res2NetDenseError as error:
        if args.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except ModuleNotFoundError as error:
        if args.debug or (error.name or "").startswith("res2net_dense"):
            raise
        print(
            f"error: {error.name} is not installed; `res2net-dense doctor` says how to get it",
            file=sys.stderr,
        )
        sys.exit(1)
    except OSError as error:
        if args.debug or error.strerror is None:
            raise
        place = f"{error.filename}: " if error.filename is not None else ""
        print(f"error: {place}{error.strerror}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)


def add_config_arguments(parser: argparse.ArgumentParser, *, exported: bool = False) -> None:
    """Add `--config`, which may be left out for `exported` files, and the overrides."""
    note = "; exported files bring their own, so that it may be left out" if exported else ""
    parser.add_argument(
        "--config", "--config-file", required=not exported, metavar="FILE", help=f"configuration (YAML){note}"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="overrides, such as train.batch_size=2"
    )


def parse_size(text: str) -> tuple[int, int]:
    """`480x640` is height and width, `224` both."""
    match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write HEIGHTxWIDTH, such as 480x640")
    return int(match[1]), int(match[2] or match[1])
