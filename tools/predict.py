"""`res2net-dense predict` from a checkout."""

import sys

from res2net_dense.cli import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
