"""The collector as a child process: ``python -m demo.collector DIRECTORY``.

It listens on a free port, which it says on standard output; a token that it made lies in its file by then.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from infi.ramen_server import CollectorServer, ServerConfig

from .lifeline import at_end_of_input, log_to_stderr
from .plan import collector_data, token_file


def main(directory: Path) -> None:
    """Collect until standard input ends."""
    log_to_stderr()
    server = CollectorServer(ServerConfig(collector_data(directory), port=0))

    def announce() -> None:
        server.listening.wait()
        if server.first_token is not None:
            token_file(directory).touch(0o600)
            token_file(directory).write_text(server.first_token, encoding="ascii")
        print(server.port, flush=True)

    threading.Thread(target=announce, name="announce", daemon=True).start()
    at_end_of_input(lambda: os.kill(os.getpid(), signal.SIGTERM))
    server.run()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
