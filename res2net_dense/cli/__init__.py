"""The command `res2net-dense`: `main` imports the module of the subcommand that was asked for, and no other.

The module of a subcommand has its name, a docstring that is the text of its `--help`, and two functions:
`add_arguments(parser)` and `main(args)`, which returns the exit code. Libraries are imported inside `main`,
so that `--help` answers at once. Modules whose names start with an underscore have what `main` needs.
"""

from __future__ import annotations

import argparse
import atexit
import importlib
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from res2net_dense.cli._shared import check_options
from res2net_dense.engine.stopping import Stopped, leave_on_signals, signals_wait
from res2net_dense.errors import Res2NetDenseError, did_you_mean, is_out_of_memory, one_line, printable
from res2net_dense.files import free_bytes, is_full
from res2net_dense.version import __version__

PROGRAM = "res2net-dense"
COMMANDS = {
    "demo": "train, evaluate and predict on drawn data, in any folder",
    "train": "train any task of a configuration",
    "lr-find": "find a learning rate, and draw the curve",
    "evaluate": "score weights or an exported file on the validation data",
    "predict": "run a trained model on images",
    "export": "write a model as ONNX, OpenVINO, torch.export or TorchScript",
    "average": "average weights of one network into one file",
    "convert": "explain a weight file, or write it for another library",
    "classify": "name what is in images, with published or your own weights",
    "score-saliency": "score saliency maps of any program against masks",
    "benchmark": "measure time and memory of networks",
    "check": "look for what is wrong with a data set, before a training does",
    "doctor": "list what is installed, what is missing, and how to get it",
    "toy": "draw a small data set",
    "split": "split a COCO annotation file into train and val",
    "prepare-duts": "check a saliency data set and write its manifest",
    "prepare-voc-aug": "make VOC's augmented training set for segmentation",
}
"""What each subcommand does, in one line. `score-saliency` is the module `score_saliency`."""
_WITH_PLACE = warnings.formatwarning
"""Warnings with their place in the code, which is not for users; for `--debug`."""
SIGPIPE_CODE = 141
"""Exit code of a program whose output is not read any more, as a shell reports it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand with its arguments; user errors are one line on standard error and exit code 1.

    Raises:
        SystemExit: after `--help` and `--version` (0), and where the arguments cannot be parsed (2).
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    _open_closed_streams()
    try:
        try:
            with leave_on_signals():
                return _run(given[0], given[1:]) if given and given[0] in COMMANDS else _answer(given)
        finally:
            atexit.unregister(_end_at_interrupt)
            atexit.register(_end_at_interrupt)  # the last one to be registered is called first
            sys.stdout.flush()
    except Stopped as stopped:
        _tell(str(stopped))
        return stopped.code
    except KeyboardInterrupt:  # of a library that has handlers of its own
        _tell("stopped by SIGINT")
        return 130
    except BrokenPipeError:  # the program that reads our output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes again at exit
        return SIGPIPE_CODE


def _end_at_interrupt() -> None:
    """Let Ctrl-C end the process from here on; libraries that clean up would show a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _open_closed_streams() -> None:
    """Connect standard streams that were closed (`>&-`) to nothing: the next file that is opened would be in
    their place, and get what libraries print.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)  # the lowest that is free, which is this number
            if descriptor == number:
                setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


def _tell(message: str) -> None:
    """Print to standard error, if anybody still reads it."""
    with suppress(OSError):
        print(printable(message), file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    """A parser in whose errors the arguments forge no message."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def _answer(given: Sequence[str]) -> int:
    """The list of subcommands, the version, or an error about an unknown one."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, text in COMMANDS.items()]
    parser = _Parser(
        prog=PROGRAM,
        description="Dense prediction on Res2Net backbones.",
        epilog="\n".join(["commands:", *lines, "", f"`{PROGRAM} COMMAND --help` says more"]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    parser.add_argument("command", metavar="COMMAND", help="one of those below, followed by its arguments")
    name = parser.parse_args(given[:1] or ["--help"]).command
    parser.error(f"unknown command {name!r}; {did_you_mean(name, COMMANDS)}")


def load(name: str) -> Any:
    """The module of a subcommand."""
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")


def parser_of(name: str, command: Any) -> argparse.ArgumentParser:
    """The parser of a subcommand, whose module is `command`."""
    parser = _Parser(
        prog=f"{PROGRAM} {name}",
        description=command.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show tracebacks and debug messages")
    return parser


def _run(name: str, given: Sequence[str]) -> int:
    """Call `main` of a subcommand; `--debug` shows the traceback of a user error too."""
    command = load(name)
    parser = parser_of(name, command)
    with signals_wait():  # an error in its middle becomes another one
        args = parser.parse_intermixed_args(list(map(_expand_home, given)))  # overrides may stand anywhere
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for its version
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PrintableFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("res2net_dense").setLevel(logging.DEBUG if args.debug else logging.WARNING)
    if not args.debug and os.environ.get("RANK", "0") == "0":  # what a backbone loads is reported, once
        logging.getLogger("res2net_dense.convert").setLevel(logging.INFO)
    logging.captureWarnings(True)
    warnings.formatwarning = _WITH_PLACE if args.debug else lambda message, *_: str(message)
    try:
        check_options(parser, args)
        code: int = command.main(args)
        return code
    except Exception as error:
        message = None if args.debug else _explain_error(error)
        if message is None:
            raise
        _tell(f"error: {message}")
        return 1


class _PrintableFormatter(logging.Formatter):
    """Writes a message on one line, so that a name in it cannot forge another one."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # its name in `logging`
        record.message = printable(record.message.rstrip())
        return super().formatMessage(record)


def _expand_home(argument: str) -> str:
    """Write out `~` at the start of an argument and after `--name=`, where many shells do not."""
    option, equals, value = argument.partition("=")
    if equals and option.startswith("--"):
        return f"{option}={os.path.expanduser(value)}"
    return os.path.expanduser(argument)


def _explain_error(error: Exception) -> str | None:
    """What a user reads, on one line; None for a fault of ours."""
    if isinstance(error, Res2NetDenseError):
        return str(error)
    if isinstance(error, NotImplementedError) and " device" in str(error):
        return f"{one_line(error)}; use runtime.device=cpu, or set PYTORCH_ENABLE_MPS_FALLBACK=1 on mps"
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("res2net_dense"):
        return f"{error.name} is not installed; `{PROGRAM} doctor` says how to get it"
    if is_out_of_memory(error):
        return "not enough memory; lower the number of images at a time, or their size"
    if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
        return _explain_os_error(error)
    return None


def _explain_os_error(error: OSError) -> str | None:
    name = error.filename
    name = name.decode(errors="replace") if isinstance(name, bytes) else name
    if error.strerror and isinstance(name, str) and is_full(error):
        return (
            f"{name}: {error.strerror}; {free_bytes(Path(name))} bytes are free: make room, then run it again"
        )
    if name is None:
        return f"{error.strerror}; make room where the output goes" if is_full(error) else error.strerror
    return f"{name}: {error.strerror or one_line(error)}"
