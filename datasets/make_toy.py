"""`res2net-dense toy` from a checkout."""

import sys

from res2net_dense.cli import main

if __name__ == "__main__":
    sys.exit(main(["toy", *sys.argv[1:]]))
