"""Weight files: opened once, read without running code, written atomically, loaded strictly.

`kinds` finds out what a file is, `reading` opens it, `whole` proves that it is what was saved, `formats`
brings old ones of ours up to date, `unwrap` finds the named tensors in it, `models` loads and saves them.
`convert` knows the names that other libraries give to tensors.
"""

from res2net_dense.weight_files.formats import FORMAT, is_ours
from res2net_dense.weight_files.kinds import SUFFIXES, is_path
from res2net_dense.weight_files.models import load_strictly, load_weights_into, save_torch, save_weights
from res2net_dense.weight_files.reading import WeightFile, open_weights
from res2net_dense.weight_files.whole import sidecar_of

__all__ = [
    "FORMAT",
    "SUFFIXES",
    "WeightFile",
    "is_ours",
    "is_path",
    "load_strictly",
    "load_weights_into",
    "open_weights",
    "save_torch",
    "save_weights",
    "sidecar_of",
]
