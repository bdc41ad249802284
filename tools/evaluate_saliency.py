"""`res2net-dense score-saliency` from a checkout."""

import sys

from res2net_dense.cli import main

if __name__ == "__main__":
    sys.exit(main(["score-saliency", *sys.argv[1:]]))
