"""``RamenHandler``: the records of ``logging`` as messages of a queue, one each.

    handler = RamenHandler(writer, level=logging.INFO)
    logging.getLogger().addHandler(handler)

A record becomes a JSON object (docs/logging.md lists its fields); what it holds is bounded: texts by ``MAX_TEXT_CHARS``, the whole by
``MAX_RECORD_BYTES``.

- **Nothing that this library logs enters the queue**, or each failed attempt to deliver would be one more message to deliver: no record
  of the logger ``ramen_client`` and its children, and none that anybody logs inside a push of a handler of this kind, in the thread that pushes.
  That holds behind a ``QueueHandler`` and ``QueueListener``, too, where such a record comes back later.
- **A record costs a push**: with ``durability="full"`` a sync of the disk, and at most a minute where another program holds the
  file. Where that is too long, put a ``QueueHandler`` before it.
- ``setFormatter`` matters for tracebacks alone.
- **Nothing is raised.** A record that cannot be formatted or stored goes to ``handleError``, as in every handler of ``logging``; it is
  not stored then. A record that is too large is stored without its extra attributes, and with shorter texts.
- Threads are not made to wait for one another here: the handler's own lock is not taken, since a writer is shared by threads anyway.
  So nobody who logs while he holds a lock of the queue can get stuck behind somebody who logs and waits for that one.
- After ``os.fork``, parent and child go on. The writer is not closed by ``close``, so records that come while the interpreter ends are
  stored, too; whoever built the writer closes it.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from infi.ramen_protocol import dump

from .queue_writer import checked_names

if TYPE_CHECKING:
    from .queue_writer import QueueWriter

__all__ = ["MAX_RECORD_BYTES", "MAX_TEXT_CHARS", "RamenHandler"]

MAX_TEXT_CHARS = 32 * 1024
"""Of the message, of the traceback and of the stack, each: a longer one keeps its beginning and its end."""

MAX_RECORD_BYTES = 256 * 1024
"""Of the whole object, as JSON."""

_OWN_LOGGER = "ramen_client"
_PUSHES_REMEMBERED = 256
_SHORT_TEXT_CHARS = 1000
_LEFT_OUT = "\n[... {} characters left out ...]\n"

_STANDARD = frozenset(logging.LogRecord("", 0, "", 0, "", (), None).__dict__) | {
    "asctime",
    "message",
    "taskName",
}


class RamenHandler(logging.Handler):
    """Pushes each record into ``writer``'s queue, under one category, data type and version.

    Raises ``InvalidMessage`` at once for names that are not allowed. Threads may share it.
    """

    def __init__(
        self,
        writer: QueueWriter,
        *,
        category: str = "logs",
        data_type: str = "python",
        data_version: str | int = 1,
        level: int | str = logging.NOTSET,
    ) -> None:
        super().__init__(level)
        self._names = checked_names(category, data_type, data_version)
        self._writer = writer

    def filter(self, record: logging.LogRecord) -> Any:
        """As every handler's; and False for what this library itself has to do with."""
        return False if self._is_own(record) else super().filter(record)

    def handle(self, record: logging.LogRecord) -> bool:
        """As every handler's, without its lock: ``emit`` may run in many threads."""
        passed = self.filter(record)
        if passed:
            self.emit(passed if isinstance(passed, logging.LogRecord) else record)
        return bool(passed)

    def emit(self, record: logging.LogRecord) -> None:
        """Push one record. Whatever goes wrong goes to ``handleError``."""
        try:
            text = self._text(record)
        except Exception:  # noqa: BLE001 - as every handler of logging: the log never breaks the program
            self.handleError(record)
            return
        _here.is_pushing = True
        began = time.time()
        try:
            self._writer.push(*self._names, text)
        except Exception:  # noqa: BLE001
            # Still as part of the push: where stderr leads into the log, what this prints would come here again, and fail again.
            self.handleError(record)
        finally:
            _here.is_pushing = False
            _here.pushes.append((began, time.time()))

    def _is_own(self, record: logging.LogRecord) -> bool:
        name = record.name
        if name == _OWN_LOGGER or name.startswith(_OWN_LOGGER + "."):
            return True
        if _here.is_pushing:
            return True
        # One that was logged inside an earlier push of this thread, and took its way through a QueueHandler.
        if record.thread != threading.get_ident() or not _here.pushes or record.created > _here.pushes[-1][1]:
            return False
        return any(began <= record.created < ended for began, ended in _here.pushes)

    def _text(self, record: logging.LogRecord) -> bytes:
        fields = self._fields(record, MAX_TEXT_CHARS)
        text = dump(fields | {"extra": _extra(record)})
        if len(text) > MAX_RECORD_BYTES:
            text = dump(fields | {"extra_left_out": True})
        if len(text) > MAX_RECORD_BYTES:
            text = dump(self._fields(record, _SHORT_TEXT_CHARS) | {"extra_left_out": True})
        return text

    def _fields(self, record: logging.LogRecord, most: int) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "time": int(record.created * 1000),
            "level": record.levelname,
            "level_number": record.levelno,
            "logger": _bounded(record.name, _SHORT_TEXT_CHARS),
            "message": _bounded(record.getMessage(), most),
            "file": _bounded(record.pathname, _SHORT_TEXT_CHARS),
            "line": record.lineno,
            "function": _bounded(record.funcName or "", _SHORT_TEXT_CHARS),
            "process": record.process,
            "process_name": record.processName,
            "thread": record.thread,
            "thread_name": record.threadName,
        }
        if record.exc_info and record.exc_info[0] is not None:
            kind = record.exc_info[0]
            fields["exception_type"] = f"{kind.__module__}.{kind.__qualname__}"
            fields["exception"] = _bounded((self.formatter or _PLAIN).formatException(record.exc_info), most)
        elif record.exc_text:
            fields["exception"] = _bounded(record.exc_text, most)
        if record.stack_info:
            fields["stack"] = _bounded(record.stack_info, most)
        return fields


class _PerThread(threading.local):
    def __init__(self) -> None:
        self.is_pushing = False
        self.pushes: deque[tuple[float, float]] = deque(maxlen=_PUSHES_REMEMBERED)
        """From when to when the latest ones took, by the clock of ``LogRecord.created``."""


_here = _PerThread()  # of all handlers together, so that two of them do not feed each other
_PLAIN = logging.Formatter()


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    """What the program gave as ``extra``, as far as JSON has a form for it; else in words."""
    return {
        _bounded(str(name), _SHORT_TEXT_CHARS): _json_value(value)
        for name, value in record.__dict__.items()
        if name not in _STANDARD
    }


def _json_value(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return _bounded(value, MAX_TEXT_CHARS)
    has_no_form: list[object] = []
    try:
        text = dump(value, on_unserialisable=lambda _path, part: has_no_form.append(part))
        return _bounded(repr(value), _SHORT_TEXT_CHARS) if has_no_form else json.loads(text)
    except Exception:  # noqa: BLE001 - the value's own methods raised, or it contains itself; the rest of the record counts
        return f"<a {type(value).__name__} that cannot be shown>"


def _bounded(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    half = most // 2
    return text[:half] + _LEFT_OUT.format(len(text) - 2 * half) + text[-half:]
