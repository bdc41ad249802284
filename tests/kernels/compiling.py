"""Compiles the programs of a chain for GPUs that are not here, with the compiler and assembler in Triton."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from res2net_dense.kernels import launch, programs

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


class Compiled(NamedTuple):
    program: str
    shared: int
    """Bytes of shared memory."""
    registers: int
    spilled: int
    """Bytes for which the registers of a thread do not suffice."""


class _Recorder:
    """Stands for the programs and takes down how they would be launched."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        program = getattr(programs, name)

        def launched(*arguments, **keywords):
            self.calls.append((program, arguments, keywords))

        return _Launcher(launched)


class _Launcher:
    def __init__(self, launched):
        self.launched = launched

    def __getitem__(self, grid):
        assert len(grid) <= 3
        assert all(number > 0 for number in grid)
        assert all(number < 2**16 for number in grid[1:])
        return self.launched


def launches(monkeypatch, run):
    """`run()` on tensors of the device "meta", without a launch; returns the launches."""
    recorder = _Recorder()
    monkeypatch.setattr(launch, "_programs", lambda: recorder)
    run()
    return recorder.calls


def compile_launch(program, arguments, keywords, capability):
    """Compile as Triton would for these arguments."""
    keywords = dict(keywords)
    options = {name: keywords.pop(name) for name in ("num_warps", "num_stages") if name in keywords}
    values = dict(zip(program.arg_names, arguments, strict=False)) | keywords
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(program.params):
        value = values[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name], constants[(index,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = f"*{NAMES[value.dtype]}"
            attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "i32" if isinstance(value, int) else "fp32"
    source = ASTSource(program, signature, constants, attributes)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return Compiled(program.__name__, made.metadata.shared, *_usage(made.asm["ptx"]))


def _usage(ptx):
    """Registers, and bytes for which the registers of a thread do not suffice.

    The assembler may give up a few registers so that one more program runs at a time. What it then spills is
    its choice: the program is built again with all registers of a thread, and what is spilled there counts.
    """
    registers, spilled = _assembled(ptx)
    if spilled:
        spilled = _assembled(re.sub(r"(\.reqntid \d+)", r"\1\n.maxnreg 255", ptx, count=1))[1]
    return registers, spilled


def _assembled(ptx):
    """Registers and spilled bytes, as the assembler reports them."""
    assembler = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "program.ptx")
        file.write_text(ptx)
        target = re.search(r"\.target (\S+)", ptx).group(1).rstrip(",")
        command = [assembler, "-v", f"--gpu-name={target}", file, "-o", Path(folder, "out")]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = int(re.search(r"Used (\d+) registers", said).group(1))
    return registers, int(re.search(r"(\d+) bytes spill stores", said).group(1))
