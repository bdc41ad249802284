"""`res2net-dense export` from a checkout."""

import sys

from res2net_dense.cli import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
