"""`res2net-dense convert` from a checkout."""

import sys

from res2net_dense.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
