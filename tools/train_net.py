"""`res2net-dense train` from a checkout."""

import sys

from res2net_dense.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
