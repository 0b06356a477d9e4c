"""The collector as a program: files, socket, TLS, start and stop, on uvicorn.

    with CollectorServer(ServerConfig(Path("data"))) as server:
        print(server.url, server.first_token)

or ``run()``, which returns after a signal. The event loop has a thread of its own; ``stop()`` may come from any thread.

Invariants: it listens beyond loopback only with TLS, or when told ``insecure=True``; the stores are open before the socket
listens, and closed after the last answer; a certificate that cannot be used never replaces one that can.

A certificate is read again (``reload_tls``, or SIGHUP in ``run``) into a context of its own, which the next handshakes are
given; connections that are open stay as they are.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import signal
import socket
import ssl
import threading
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import uvicorn

from ._files import UnusableFile, write_secret
from ._http import bounded
from .app import Collector
from .limits import Limits
from .settings import Settings
from .stores.sqlite import DEFAULT_REMEMBER_MESSAGES, SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import FrameType, TracebackType

_BACKLOG = 1024
_START_SECONDS = 30
_MAX_PORT = 65535
_LOOK_EVERY_SECONDS = 1

_logger = logging.getLogger("ramen_server")


class InsecureListen(ValueError):
    """Beyond loopback, tokens and messages need TLS; give a certificate and its key, or say insecure."""


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """What a collector needs to know. Raises ``InsecureListen`` or ``ValueError``.

    ``host`` is an address or ``localhost``; port 0 takes a free one. ``tls_certificate`` (with what leads to its authority) and
    ``tls_key`` are PEM files. ``remember_days``: for how many days duplicates are recognised, at least, unless there
    were more than ``remember_messages`` since.
    ``first_token_file``: where the first token is written to (0600) when one is made, before it counts.
    """

    data_dir: Path
    host: str = "127.0.0.1"
    port: int = 8443
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    insecure: bool = False
    remember_days: int = 30
    remember_messages: int = DEFAULT_REMEMBER_MESSAGES
    limits: Limits = field(default_factory=Limits)
    first_token_file: Path | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port <= _MAX_PORT:
            raise ValueError(f"port must be 0 (any free one) to {_MAX_PORT}, not {self.port}")
        if self.remember_days < 1:
            raise ValueError(f"remember_days must be 1 or more, not {self.remember_days}")
        if self.remember_messages < 1:
            raise ValueError(f"remember_messages must be 1 or more, not {self.remember_messages}")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together")
        if self.tls_certificate is None and not self.insecure and not _is_loopback(self.host):
            raise InsecureListen(
                f"{self.host} is not a loopback address: without TLS everybody on the way reads tokens and messages. "
                "Give tls_certificate and tls_key, or say insecure if something else protects the way."
            )


class CollectorServer:
    """One collector. ``start`` raises what the files raise (``StoreInUse``, ``UnusableFile``, ``OSError`` …)."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.first_token: str | None = None
        """A token that may send everything, made when there was none; it cannot be had again."""
        self.port = config.port
        self._tls: _Tls | None = None
        self._closing = ExitStack()
        self._uvicorn: _Uvicorn | None = None
        self._collector: Collector | None = None
        self._thread: threading.Thread | None = None
        self._fault: BaseException | None = None
        self.listening = threading.Event()
        """Set while it takes messages; for threads beside ``run``."""
        self._ended = threading.Event()

    @property
    def url(self) -> str:
        """Where it listens."""
        scheme = "http" if self.config.tls_certificate is None else "https"
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        return f"{scheme}://{host}:{self.port}"

    def start(self) -> None:
        """Open the files, listen, and return; the collector is ready then."""
        with ExitStack() as closing:
            config = self.config
            settings = closing.enter_context(Settings(config.data_dir))
            store = SqliteStore(
                config.data_dir,
                remember_days=config.remember_days,
                remember_messages=config.remember_messages,
                min_free_bytes=config.limits.min_free_bytes,
            )
            closing.callback(store.close)
            self._tls = _Tls.of(config)
            listener = closing.enter_context(_listen(config))
            self.port = listener.getsockname()[1]
            self.first_token = settings.add_first_token(self._keep_first_token)
            self._collector = Collector(store, settings, config.limits)
            self._uvicorn = _Uvicorn(_uvicorn_config(self._collector, config.limits, self._tls))
            self._fault = None
            self._thread = threading.Thread(
                target=self._serve, args=(listener,), name="ramen-collector", daemon=True
            )
            self._thread.start()
            self._uvicorn.settled.wait(_START_SECONDS)
            if not self._uvicorn.started:
                self._thread.join()
                raise RuntimeError("the collector did not start") from self._fault
            self._closing = closing.pop_all()
            self.listening.set()

    def stop(self) -> None:
        """Answer what is in flight, commit it, close everything. Does nothing when it is not running."""
        self.listening.clear()
        if self._collector is not None and self._uvicorn is not None and self._thread is not None:
            self._collector.begin_stop()
            self._uvicorn.should_exit = True
            self._thread.join()
        self._closing.close()
        # Here and not at the start: a signal that comes while it starts must not be forgotten.
        self._ended.clear()

    def run(
        self,
        signals: tuple[signal.Signals, ...] = (signal.SIGTERM, signal.SIGINT),
        *,
        on_listening: Callable[[], None] = lambda: None,
        on_stopping: Callable[[], None] = lambda: None,
    ) -> None:
        """Start, wait for one of the signals, stop; SIGHUP reads the certificate again.

        For the main thread; the signals' handlers are put back. ``on_listening`` and ``on_stopping`` are called when it takes
        messages, and before it stops to.
        """

        def end(_number: int, _frame: FrameType | None) -> None:
            self._ended.set()

        def reload(_number: int, _frame: FrameType | None) -> None:
            # In a thread: a handler interrupts the main thread anywhere, maybe while it holds a lock of the log.
            threading.Thread(target=self._reload_tls_and_say, name="ramen-reload", daemon=True).start()

        former = {number: signal.signal(number, end) for number in signals}
        former[signal.SIGHUP] = signal.signal(signal.SIGHUP, reload)
        try:
            self.start()
            on_listening()
            self.wait()
            on_stopping()
        finally:
            self.stop()
            for number, handler in former.items():
                signal.signal(number, handler)

    def reload_tls(self) -> None:
        """Read certificate and key again; connections from now on get them. Does nothing without TLS.

        Raises ``UnusableFile`` or ``OSError``, and what was in use stays so.
        """
        if self._tls is not None:
            self._tls.load()

    def wait(self) -> None:
        """Wait for the end of the collector. Raises ``RuntimeError`` when it ended by itself."""
        # In turns: a signal that the kernel gives to another thread (it does to a traced process) interrupts no wait of this one.
        while not self._ended.wait(_LOOK_EVERY_SECONDS):
            pass
        if self._fault is not None:
            raise RuntimeError("the collector ended by itself") from self._fault

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _keep_first_token(self, text: str) -> None:
        if self.config.first_token_file is not None:
            write_secret(self.config.first_token_file, text)

    def _reload_tls_and_say(self) -> None:
        if self._tls is None:
            _logger.info("There is no certificate to read again: it listens without TLS.")
            return
        try:
            self._tls.load()
        except (UnusableFile, OSError) as error:
            _logger.error("The certificate was not read again, the former one stays in use. %s", error)  # noqa: TRY400
        else:
            _logger.info("Certificate and key were read again.")

    def _serve(self, listener: socket.socket) -> None:
        assert self._uvicorn is not None  # noqa: S101 - start() made it
        try:
            asyncio.run(self._uvicorn.serve(sockets=[listener]))
        except BaseException as error:  # SystemExit is how uvicorn fails to start
            _logger.exception("The collector's loop ended.")
            self._fault = error
        finally:
            self._uvicorn.settled.set()
            self._ended.set()


class _Uvicorn(uvicorn.Server):
    """Tells when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.settled = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.settled.set()


class _Tls:
    """Certificate and key of new connections. Any thread may load them anew."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._certificate = certificate
        self._key = key
        self._lock = threading.Lock()  # whoever loads last has read last
        self.load()
        self.context = self._current
        """What the socket is given; each handshake then goes on with what was loaded last."""
        self.context.sni_callback = self._switch

    @classmethod
    def of(cls, config: ServerConfig) -> _Tls | None:
        if config.tls_certificate is None or config.tls_key is None:
            return None
        return cls(config.tls_certificate, config.tls_key)

    def load(self) -> None:
        with self._lock:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            for path in (self._certificate, self._key):
                path.open("rb").close()  # ssl does not say which of them cannot be read
            try:
                # A key with a passphrase is an error, not a question at the terminal.
                context.load_cert_chain(self._certificate, self._key, password="")
            except ssl.SSLError as error:
                raise UnusableFile(
                    f"tls_certificate {self._certificate} and tls_key {self._key} cannot be used: "
                    f"{error.reason or error}. They must be PEM, belong together, and the key have no passphrase."
                ) from None
            self._current = context

    def _switch(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        # Called in each handshake, also for clients that name no host.
        connection.context = self._current


def _uvicorn_config(collector: Collector, limits: Limits, tls: _Tls | None) -> uvicorn.Config:
    return uvicorn.Config(
        collector.asgi,
        http=bounded(limits),
        loop="asyncio",
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="warning",  # its starts and stops are ours to tell
        access_log=False,
        proxy_headers=False,
        server_header=False,
        workers=1,
        backlog=_BACKLOG,
        timeout_keep_alive=int(limits.keep_alive_seconds) or 1,
        timeout_graceful_shutdown=int(limits.stop_seconds) or 1,
        ssl_context_factory=None if tls is None else lambda _config, _default: tls.context,
    )


def _listen(config: ServerConfig) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # With its protocol named: asyncio switches Nagle's delay off (40 ms an answer) only where it sees that it is TCP.
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.setblocking(False)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise OSError(
            error.errno, f"cannot listen on {config.host}:{config.port}: {error.strerror}"
        ) from None
    return listener


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False
