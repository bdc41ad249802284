"""Weight files: opened once, read without running code, written atomically, loaded strictly.

`kinds` finds out what a file is, `reading` opens it, `unwrap` finds the named tensors in it,
`models` loads and saves them. `convert` knows the names that other libraries give to tensors.
"""

from res2net_dense.weight_files.kinds import SUFFIXES, is_path
from res2net_dense.weight_files.models import load_strictly, load_weights_into, save_weights
from res2net_dense.weight_files.reading import WeightFile, open_weights

__all__ = [
    "SUFFIXES",
    "WeightFile",
    "is_path",
    "load_strictly",
    "load_weights_into",
    "open_weights",
    "save_weights",
]
