"""`res2net-dense check` from a checkout."""

import sys

from res2net_dense.cli import main

if __name__ == "__main__":
    sys.exit(main(["check", *sys.argv[1:]]))
