"""Sockets and threads of the test server: one thread that accepts, one thread for each connection.

Invariants:

- After ``stop`` has returned, no thread and no connection of this listener is left. (Only a ``stop`` that is
  called in a connection's own thread does not wait for the others: two that wait for each other would never end.)
- The port never changes after the first ``start``. While stopped it stays bound, without listening: a client is
  refused, nobody else can take the port, and a client on the same host cannot connect to itself by chance.
- A connection is cut only while it is in ``_connections``, and leaves that before it is closed: a descriptor that
  the system has meanwhile given to somebody else is never touched.

Locks: ``_life`` is held while starting and stopping, and guards the sockets and the accepting thread. ``_lock``
guards ``_connections``. ``_lock`` may be taken while holding ``_life``, never the other way round; only the
accepting thread counts connections.
"""

from __future__ import annotations

import selectors
import socket
import threading
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING

from infi.ramen_client.testing._connection import Connection

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

HOST = "127.0.0.1"
_BACKLOG = 512
_PAUSE_SECONDS = 0.05
_JOIN_SECONDS = 10.0


class Listener:
    """Accepts connections on 127.0.0.1 and runs ``serve`` for each, in a thread of its own.

    ``serve`` may end with ``OSError`` when the connection ends under its hands. ``port`` 0 means a free one.
    """

    def __init__(
        self, serve: Callable[[Connection], None], *, port: int, ssl_context: ssl.SSLContext | None
    ) -> None:
        self._serve = serve
        self._ssl_context = ssl_context
        self._port = port
        self._life = threading.Lock()
        self._bound: socket.socket | None = None
        self._waker: socket.socket | None = None
        self._acceptor: threading.Thread | None = None
        self._lock = threading.Lock()
        self._connections: dict[Connection, threading.Thread] = {}
        self._count = 0

    @property
    def port(self) -> int:
        """The port; ``RuntimeError`` as long as there is none."""
        if not self._port:
            raise RuntimeError("the server has no port before its first start()")
        return self._port

    def start(self) -> None:
        """Listen; nothing happens when it does so already. Raises ``OSError`` when the port cannot be had."""
        with self._life:
            if self._acceptor is not None:
                return
            bound = self._bound or self._bind()
            bound.setblocking(False)
            bound.listen(_BACKLOG)
            self._bound = bound
            self._waker, wake = socket.socketpair()
            self._acceptor = threading.Thread(
                target=self._accept, args=(bound, wake), name=f"ramen-test-{self._port}-accept", daemon=True
            )
            self._acceptor.start()

    def stop(self) -> None:
        """Refuse new connections, cut all that are open; nothing happens when it is stopped already.

        Raises ``RuntimeError`` when a connection's thread does not end within 10 s: ``serve`` is caught in something
        that is not the connection.
        """
        with self._life:
            if self._acceptor is not None and self._waker is not None and self._bound is not None:
                self._waker.close()
                self._acceptor.join()
                self._acceptor = self._waker = None
                self._bound.close()
                self._bound = None
                with suppress(OSError):  # somebody was quicker: then start() says so
                    self._bound = self._bind()
        with self._lock:
            threads = list(self._connections.values())
            for connection in self._connections:
                connection.cut()
        if threading.current_thread() not in threads:
            for thread in threads:
                thread.join(_JOIN_SECONDS)
                if thread.is_alive():
                    raise RuntimeError(f"{thread.name} does not end: is a reply function still waiting?")

    def close(self) -> None:
        """Stop, and let go of the port."""
        self.stop()
        with self._life:
            if self._acceptor is None and self._bound is not None:
                self._bound.close()
                self._bound = None

    def _bind(self) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        # Whoever only calls stop() and forgets the server must not get a ResourceWarning for the reserved port.
        weakref.finalize(self, sock.close)
        try:
            # For the connections of our own past that the system still remembers (TIME_WAIT).
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((HOST, self._port))
        except OSError:
            sock.close()
            raise
        self._port = sock.getsockname()[1]
        return sock

    def _accept(self, listening: socket.socket, wake: socket.socket) -> None:
        with wake, selectors.DefaultSelector() as selector:
            selector.register(listening, selectors.EVENT_READ)
            selector.register(wake, selectors.EVENT_READ)
            while all(key.fileobj is not wake for key, _ in selector.select()):
                try:
                    sock, _ = listening.accept()
                except (BlockingIOError, ConnectionError):
                    continue  # the client was gone before we came
                except OSError:
                    # Out of descriptors, most likely; the client waits in the backlog until there are some again.
                    wake.settimeout(_PAUSE_SECONDS)
                    with suppress(TimeoutError):
                        wake.recv(1)
                    continue
                self._begin(sock)

    def _begin(self, sock: socket.socket) -> None:
        try:
            sock.setblocking(True)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._ssl_context is not None:
                sock = self._ssl_context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        except OSError:
            sock.close()
            return
        self._count += 1
        connection = Connection(sock, self._count)
        thread = threading.Thread(
            target=self._run,
            args=(connection,),
            name=f"ramen-test-{self._port}-connection-{connection.number}",
            daemon=True,
        )
        with self._lock:  # which the thread needs at its end, so it cannot leave before it is in
            thread.start()
            self._connections[connection] = thread

    def _run(self, connection: Connection) -> None:
        try:
            with suppress(OSError):
                connection.handshake()
                self._serve(connection)
        finally:
            with self._lock:
                del self._connections[connection]
            connection.close()
