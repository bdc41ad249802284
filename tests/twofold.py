"""Run a script in two processes that torchrun would have started: twofold.py SCRIPT [ARGUMENTS].

They are forks of this one, and so have the libraries that it has imported. The last line of the output has
their exit codes.
"""

import os
import socket
import sys
from pathlib import Path

from launcher import run_to_the_end

sys.argv = sys.argv[1:]
sys.path[0] = str(Path(sys.argv[0]).parent)
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
os.environ |= {
    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
}  # fmt: skip
processes = []
for rank in "01":
    process = os.fork()
    if process == 0:
        os.environ |= {"RANK": rank, "LOCAL_RANK": rank}
        run_to_the_end(sys.argv[0])
    processes.append(process)
codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
print(*codes)
sys.exit(int(any(codes)))
