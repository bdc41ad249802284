"""The chain of splits of a Res2Net block as numbers."""

from __future__ import annotations

from typing import Literal, NamedTuple

POOLS = ("none", "counted", "ignored")


class Chain(NamedTuple):
    """What a block does between `conv1` and `conv3`.

    `y_i = relu(norm_i(conv_i(x_i + y_(i-1))))` for all splits but the last, which is copied or averaged.
    """

    width: int
    """Channels of a split."""
    scale: int
    """Splits, at least 2."""
    stride: int = 1
    """Of convolutions and average; above 1 only where the splits are independent."""
    dilation: int = 1
    cardinality: int = 1
    """Groups of a convolution."""
    independent: bool = False
    """A stage block: nothing is added to a split."""
    pool: Literal["none", "counted", "ignored"] = "none"
    """The last split is copied, or averaged over 3x3 pixels, whether the padding counts or not."""

    @property
    def group(self) -> int:
        """Channels of a group."""
        return self.width // self.cardinality

    def output_size(self, rows: int, columns: int) -> tuple[int, int]:
        """Rows and columns of the output."""
        return -(-rows // self.stride), -(-columns // self.stride)


def chain_bytes(chain: Chain, images: int, rows: int, columns: int, itemsize: int) -> int:
    """The bytes that a chain moves at the least: input and weights read once, output written once.

    Args:
        chain: the block.
        images, rows, columns: of its input.
        itemsize: bytes of a number.
    """
    out_rows, out_columns = chain.output_size(rows, columns)
    maps = images * (rows * columns + out_rows * out_columns) * chain.width * chain.scale
    weights = (chain.scale - 1) * chain.width * chain.group * 9
    return (maps + weights) * itemsize
