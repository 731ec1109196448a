"""Stands for nbd-client: there may be no module nbd. It sees whether a server listens, and notes what is connected
where the kernel does, in sysfs."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path


def main(sysfs: Path, arguments: list[str]) -> int:
    if arguments[0] == "-d":
        (sysfs / "block" / os.path.basename(arguments[1]) / "pid").unlink()
        return 0
    assert arguments[0] == "-unix" and arguments[3] == "-name", arguments
    path, device, name = arguments[1], arguments[2], arguments[4]
    with socket.socket(socket.AF_UNIX) as connected:
        connected.connect(path)
        assert connected.recv(8) == b"NBDMAGIC"
    block = sysfs / "block" / os.path.basename(device)
    (block / "pid").write_text(str(os.getpid()))
    Path(device).write_text(name)
    # As the real one may: it leaves a process, which keeps what it was given open.
    if os.fork() == 0:
        time.sleep(3)
        os._exit(0)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
