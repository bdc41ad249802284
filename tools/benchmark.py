"""`res2net-dense benchmark` from a checkout."""

import sys

from res2net_dense.cli import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", *sys.argv[1:]]))
