"""`res2net-dense prepare-duts` from a checkout."""

import sys

from res2net_dense.cli import main

if __name__ == "__main__":
    sys.exit(main(["prepare-duts", *sys.argv[1:]]))
