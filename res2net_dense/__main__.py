"""`python -m res2net_dense` is `res2net-dense`."""

import sys

from res2net_dense.cli import main

if __name__ == "__main__":
    sys.exit(main())
