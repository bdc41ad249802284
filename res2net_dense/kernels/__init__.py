"""The splits of a Res2Net block in few launches on NVIDIA GPUs, written in Triton, which is optional.

Between `conv1` and `conv3` a block splits a map, adds, convolves, normalizes, clips and concatenates: many
small steps over memory. Here a launch reads a split and the output of the one before in their places in two
maps, and writes its result in its place.

* `Chain`: a block as numbers; `chain_bytes`: what it must read and write at the least.
* `run_fixed`: a chain whose norms are fixed, with gradients if they are needed; `run_batch`: in training,
  with norms of the batch; `infer`: the first without gradients, with weights and norms prepared by
  `pack_weights` and `fixed_norms`.
* `gpu_works`, `runs_here`, `shape_class`, `tiles`, `choose`: whether the programs run on a device and for a
  map at all, and which of the few ways, PyTorch's among them, is the fastest for maps like it. `chosen` has
  what was measured.

Everything here takes tensors and numbers and knows no network.
"""

from res2net_dense.kernels.autograd import fixed_norms, run_batch, run_fixed
from res2net_dense.kernels.chain import Chain, chain_bytes
from res2net_dense.kernels.choice import choose, chosen, gpu_works, runs_here, shape_class
from res2net_dense.kernels.launch import Tile, Trained, infer, pack_weights, tiles

__all__ = [
    "Chain",
    "Tile",
    "Trained",
    "chain_bytes",
    "choose",
    "chosen",
    "fixed_norms",
    "gpu_works",
    "infer",
    "pack_weights",
    "run_batch",
    "run_fixed",
    "runs_here",
    "shape_class",
    "tiles",
]
