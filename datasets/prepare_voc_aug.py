"""`res2net-dense prepare-voc-aug` from a checkout."""

import sys

from res2net_dense.cli import main

if __name__ == "__main__":
    sys.exit(main(["prepare-voc-aug", *sys.argv[1:]]))
