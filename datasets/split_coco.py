"""`res2net-dense split` from a checkout."""

import sys

from res2net_dense.cli import main

if __name__ == "__main__":
    sys.exit(main(["split", *sys.argv[1:]]))
