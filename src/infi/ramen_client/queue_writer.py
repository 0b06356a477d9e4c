"""Pushing messages: from any number of threads and processes, durable on return, never waiting for the network."""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Any, Self
from zlib import crc32

from infi.ramen_protocol import compress, decompress_zlib, dump, is_name, message_id, normalise_reqid

from ._config_fields import shown
from ._opening import open_queue
from .config import QueueWriterConfig
from .errors import InvalidMessage, MessageTooLarge, WrongConfig
from .storage import NewMessage, ReqidOrigin, now_ms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType
    from uuid import UUID

    from .storage import Books, Queue, StoredMessage

logger = logging.getLogger("ramen_client")

_LOOK_AGAIN_SECONDS = 0.02
_MAX_PATHS_REMEMBERED = 1000
_MAX_NAMES_REMEMBERED = 1000
_PLAIN_VERSIONS = frozenset((str, int))
_BIGGEST_INT = 2**63 - 1


class QueueWriter:
    """Stores messages on disk for a ``QueueReader``, here or in another process, to deliver.

    Building one opens the queue, creating directory and file if needed (``ValidationError``, ``QueueUnusable``). One object
    may be shared by threads, and survives ``os.fork`` and ``multiprocessing``: parent and child go on with it.
    """

    def __init__(self, config: QueueWriterConfig) -> None:
        if not isinstance(config, QueueWriterConfig):
            raise WrongConfig(
                f"a QueueWriter is built with a QueueWriterConfig, not with a {type(config).__name__}"
            )
        config.validate()
        self._config = config
        self._checked_version = config.system_version
        self._store = open_queue(config)
        self._queue = OldQueue(self._store, config)
        self._known_names: set[tuple[str, str, str | int]] = set()
        self._unserialisable_paths: set[tuple[str, str, str]] = set()
        self.unserialisable_count = 0
        """How many values this writer had to push as ``null``."""

    def __repr__(self) -> str:
        return f"<QueueWriter {self._store!r}>"

    def __reduce__(self) -> tuple[type[QueueWriter], tuple[QueueWriterConfig]]:
        # For multiprocessing's spawn and forkserver: the other process opens the queue anew.
        return type(self), (self._config,)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the queue; what was pushed stays in it. Pushing afterwards raises ``QueueClosed``."""
        self._store.close()

    def push(
        self,
        category: str,
        data_type: str,
        data_version: str | int,
        data: Any,
        reqid: str | int | UUID | None = None,
    ) -> str:
        """Store one message durably and return its reqid.

        ``category``, ``data_type`` and ``data_version`` (text, or an int for the version) hold letters, digits, ``_`` and
        ``-``. ``data``: ``str`` and ``bytes`` are taken as JSON text already (not checked); anything else is serialised.
        ``reqid`` is what the server knows duplicates by; without one the message gets one that is unique for ever.

        Raises ``InvalidMessage`` (``MessageTooLarge``) for what is no message, ``QueueError`` where the disk fails
        (``DiskFull``, ``QueueGone``, …): nothing was stored then, but for ``DurabilityError``.
        """
        message = self._message(category, data_type, data_version, data, reqid)
        self._store.push((message,))
        return message.reqid

    def push_many(self, messages: Iterable[tuple[Any, ...]]) -> list[str]:
        """Store messages in one transaction, all or none; return their reqids in order.

        Each is a tuple of ``push``'s arguments: ``(category, data_type, data_version, data)`` or with a reqid as fifth.
        They are held in memory, compressed, until all are there. Raises as ``push`` does, and says which message is at fault;
        ``MessageTooLarge`` also when all of them together are larger than the queue.
        """
        prepared = [self._numbered_message(number, arguments) for number, arguments in enumerate(messages)]
        stored_bytes = sum(len(message.data) for message in prepared)
        if stored_bytes > self._config.max_queue_size:
            raise MessageTooLarge(
                f"these {len(prepared)} messages take {stored_bytes} bytes, compressed; max_queue_size allows "
                f"{self._config.max_queue_size}. Nothing was stored; push them in smaller parts."
            )
        if prepared:
            self._store.push(prepared)
        return [message.reqid for message in prepared]

    def _numbered_message(self, number: int, arguments: tuple[Any, ...]) -> NewMessage:
        try:
            category, data_type, data_version, data, *reqid = arguments
            return self._message(category, data_type, data_version, data, *reqid)
        except InvalidMessage as error:
            raise type(error)(f"message {number} of push_many: {error}") from error
        except (TypeError, ValueError) as error:
            raise InvalidMessage(
                f"message {number} of push_many is not (category, data_type, data_version, data[, reqid]): {error}"
            ) from error

    def books(self) -> Books:
        """Where every message that was ever pushed into this queue is now, whoever pushed it."""
        return self._store.books()

    def queue_size(self) -> int:
        """How many messages wait in the queue, whoever pushed them (not bytes)."""
        return self._store.size()

    def wait_sent(self, timeout: float | None = None) -> bool:
        """Wait until nothing that was pushed before this call waits any more; False when ``timeout`` seconds passed first.

        For scripts that end soon after they pushed. A reader must be running, here or in another process. True says that
        each message has met its fate, not which: a rejected one is a dead letter. Raises ``QueueGone`` when the queue is taken away.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        is_sent = self.sent_check()
        while not is_sent():
            left = _LOOK_AGAIN_SECONDS
            if deadline is not None:
                left = min(left, deadline - time.monotonic())
                if left <= 0:
                    return False
            time.sleep(left)
        return True

    def sent_check(self) -> Callable[[], bool]:
        """What ``wait_sent`` asks again and again: whether nothing that was pushed before this call waits any more.

        For those who wait in a way of their own. The question raises ``QueueGone`` when the queue was taken away.
        """
        point = self._store.push_point()

        def is_sent() -> bool:
            if self._store.settled_up_to(point):
                return True
            # Nothing ever leaves a file that was deleted.
            self._store.database.check_in_place()
            return False

        return is_sent

    def _message(
        self,
        category: str,
        data_type: str,
        data_version: str | int,
        data: Any,
        reqid: str | int | UUID | None = None,
    ) -> NewMessage:
        category, data_type, data_version = self._checked_names(category, data_type, data_version)
        plain = self._plain_text(category, data_type, data)
        if len(plain) > min(self._config.max_message_bytes, self._config.max_queue_size):
            raise MessageTooLarge(
                f"the message is {len(plain)} bytes long; max_message_bytes allows {self._config.max_message_bytes}, "
                f"max_queue_size {self._config.max_queue_size}. Nothing was stored."
            )
        return _new_message(
            (category, data_type, data_version), self._system_version(), reqid, plain, compress(plain)
        )

    def _checked_names(
        self, category: str, data_type: str, data_version: str | int
    ) -> tuple[str, str, str | int]:
        """As ``checked_names``, but each name is looked at once: a program pushes few different ones."""
        # Equal to what was checked, and of the very types: True equals 1, and what a subclass is equal to is its own affair.
        if type(category) is type(data_type) is str and type(data_version) in _PLAIN_VERSIONS:
            names = category, data_type, data_version
            if names in self._known_names:
                return names
            names = checked_names(*names)
            if len(self._known_names) < _MAX_NAMES_REMEMBERED:
                self._known_names.add(names)
            return names
        return checked_names(category, data_type, data_version)

    def _system_version(self) -> str:
        """The configuration's, which may have been assigned since it was checked."""
        version = self._config.system_version
        if version is not self._checked_version:
            self._config.validate()
            self._checked_version = version = self._config.system_version
        return version

    def _plain_text(self, category: str, data_type: str, data: Any) -> bytes:
        if isinstance(data, bytes):
            return data
        if isinstance(data, str):
            try:
                return data.encode()
            except UnicodeEncodeError as error:
                raise InvalidMessage(
                    f"data is text that UTF-8 cannot express (lone surrogates): {error.reason}"
                ) from None
        try:
            return dump(
                data,
                on_unserialisable=lambda path, value: self._note_unserialisable(
                    category, data_type, path, value
                ),
            )
        except ValueError as error:
            raise InvalidMessage(f"data cannot be serialised: {error}") from error

    def _note_unserialisable(self, category: str, data_type: str, path: str, value: object) -> None:
        if self._config.unserialisable == "raise":
            raise TypeError(f"JSON has no form for {path}, a {type(value).__name__}; nothing was stored")
        self.unserialisable_count += 1
        where = (category, data_type, path)
        if where in self._unserialisable_paths or len(self._unserialisable_paths) >= _MAX_PATHS_REMEMBERED:
            return
        self._unserialisable_paths.add(where)
        logger.warning(
            "%s/%s: JSON has no form for %s, a %s; pushed as null (said once for each path; unserialisable='raise' refuses it)",
            category,
            data_type,
            path,
            type(value).__name__,
        )


def checked_names(category: str, data_type: str, data_version: str | int) -> tuple[str, str, str | int]:
    """The names as plain ``str`` and ``int``; ``InvalidMessage`` where one could not stand in the protocol's URL."""
    return (
        _checked_name("category", category),
        _checked_name("data_type", data_type),
        _checked_version(data_version),
    )


def _checked_name(what: str, value: object) -> str:
    if not isinstance(value, str) or not is_name(value):
        raise InvalidMessage(f"{what} must be text of letters, digits, '_' and '-', not {shown(value)}")
    # A subclass (an Enum member, say) may dress itself up in __str__; its characters are what counts.
    return value if type(value) is str else str.__str__(value)


def _checked_version(value: object) -> str | int:
    if isinstance(value, int) and not isinstance(value, bool):
        if not -_BIGGEST_INT <= value <= _BIGGEST_INT:
            raise InvalidMessage("data_version as an int must fit 64 bits; give it as text")
        return int(value)
    if not isinstance(value, str) or not is_name(value):
        raise InvalidMessage(
            f"data_version must be an int, or text of letters, digits, '_' and '-', not {shown(value)}"
        )
    return value if type(value) is str else str.__str__(value)


def _new_message(
    names: tuple[str, str, str | int],
    system_version: str,
    reqid: str | int | UUID | None,
    plain: bytes,
    stream: bytes,
) -> NewMessage:
    now = now_ms()
    identity = _identity(reqid, now)
    return NewMessage(*names, system_version, *identity, now, len(plain), crc32(plain), stream)


def _identity(reqid: str | int | UUID | None, now: int) -> tuple[str, ReqidOrigin]:
    # 1.x takes an empty one for none.
    if reqid is None or reqid == "":
        return message_id(now, os.urandom(10)), ReqidOrigin.PUSH
    try:
        return normalise_reqid(reqid), ReqidOrigin.CALLER
    except (TypeError, ValueError) as error:
        raise InvalidMessage(str(error)) from None


class OldQueue:
    """What tests of 1.x programs reach as ``writer._queue``. Items are dicts; ``data`` is a zlib stream."""

    def __init__(self, store: Queue, config: QueueWriterConfig) -> None:
        self._store = store
        self._config = config

    def __len__(self) -> int:
        return self._store.size()

    def push(
        self, category: str, data_type: str, data_version: str | int, data: bytes, reqid: str | None = None
    ) -> None:
        """Store a message whose payload is a zlib stream already."""
        names = checked_names(category, data_type, data_version)
        try:
            plain = decompress_zlib(data, max_bytes=self._config.max_message_bytes)
        except ValueError as error:
            raise InvalidMessage(f"data must be one zlib stream: {error}") from error
        self._store.push((_new_message(names, self._config.system_version, reqid, plain, data),))

    def peek(self) -> dict[str, Any] | None:
        """The oldest item, or None."""
        return _old_item(self._store.oldest())

    def pop(self) -> dict[str, Any] | None:
        """Remove and return the oldest item, or None."""
        return _old_item(self._store.take_oldest())


def _old_item(message: StoredMessage | None) -> dict[str, Any] | None:
    if message is None:
        return None
    return {
        "id": message.position,
        "category": message.category,
        "data_type": message.data_type,
        "data_version": message.data_version,
        "reqid": message.reqid if message.reqid_origin == ReqidOrigin.CALLER else None,
        "data": message.data,
    }
