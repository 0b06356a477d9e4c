"""A collector as a process of its own, to be killed, starved and measured: ``hard_process.py DIRECTORY PORT LIMITS [SLOW_MS]``.

``LIMITS`` is a JSON object. With ``SLOW_MS`` its disk takes so long before and after each commit: there is time to kill it
before one, and between one and its answers. It prints its port and first token, and runs until SIGTERM.
"""

import json
import logging
import sys
import threading
import time
from pathlib import Path

from infi.ramen_server import CollectorServer, Limits, ServerConfig, SqliteStore

directory, port, limits, *slow_ms = sys.argv[1:]
logging.basicConfig(level=logging.WARNING)

if slow_ms:
    seconds = float(slow_ms[0]) / 1000
    commit_at_once = SqliteStore.commit

    def commit(store, submissions, now_ms):
        time.sleep(seconds)
        outcomes = commit_at_once(store, submissions, now_ms)
        time.sleep(seconds)
        return outcomes

    SqliteStore.commit = commit

server = CollectorServer(ServerConfig(Path(directory), port=int(port), limits=Limits(**json.loads(limits))))


def tell():
    server.listening.wait()
    print(server.port, server.first_token, flush=True)


threading.Thread(target=tell, daemon=True).start()
server.run()
