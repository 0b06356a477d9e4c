"""A collector as a process of its own: prints its port and first token, runs until SIGTERM.

Its disk is slow: there is time to kill it before a commit, and between a commit and its answers.
"""

import sys
import threading
import time
from pathlib import Path

from infi.ramen_server import CollectorServer, Limits, ServerConfig, SqliteStore

commit_at_once = SqliteStore.commit


def commit(store, submissions, now_ms):
    time.sleep(0.005)
    outcomes = commit_at_once(store, submissions, now_ms)
    time.sleep(0.005)
    return outcomes


SqliteStore.commit = commit

server = CollectorServer(
    ServerConfig(Path(sys.argv[1]), port=int(sys.argv[2]), limits=Limits(min_free_bytes=0))
)


def tell():
    server.listening.wait()
    print(server.port, server.first_token, flush=True)


threading.Thread(target=tell, daemon=True).start()
server.run()
print("stopped", flush=True)
