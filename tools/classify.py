"""`res2net-dense classify` from a checkout."""

import sys

from res2net_dense.cli import main

if __name__ == "__main__":
    sys.exit(main(["classify", *sys.argv[1:]]))
