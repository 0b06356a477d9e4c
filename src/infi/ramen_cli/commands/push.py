"""``ramen push``: put JSON documents into a queue.

The input is one JSON document (one message), or NDJSON: one on each line. Which of them is found out by its first line that is not
blank: where that is a whole document, every line is one. ``--json`` and ``--ndjson`` say it instead.

- What is pushed is the text as it stands in the input: no digit of a number changes.
- Lines are pushed as they come, up to some hundred in one transaction, in bounded memory; a message's size is limited by
  ``max_message_bytes``. All that stands before a bad line is pushed, and nothing after it, unless ``--skip-bad`` passes over it.
- Ctrl-C comes between two transactions: the number that is printed is exactly what was stored.

stdout has how many messages were pushed; with ``--print-reqid`` their reqids instead, one on a line, when they are stored. stderr has
what is wrong.

Exit codes: 0 all was pushed; 1 something was not: what and where stands on stderr, and how many were; 2 the command line or the
configuration is wrong; 3 the queue or the file cannot be used, and nothing was pushed; 130 after Ctrl-C.
"""

from __future__ import annotations

import signal
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self, cast

import click

from infi.ramen_cli import _json_input
from infi.ramen_cli._exit import ExitCode
from infi.ramen_cli._json_input import BadInput, Document
from infi.ramen_cli._options import Where, config_options
from infi.ramen_client.errors import DurabilityError, InvalidMessage, QueueError
from infi.ramen_client.queue_writer import QueueWriter, checked_names
from infi.ramen_protocol import normalise_reqid

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import BufferedReader
    from types import FrameType

    from infi.ramen_cli._json_input import Source
    from infi.ramen_client.config import QueueWriterConfig

_CHUNK_MESSAGES = 500
_CHUNK_BYTES = 1024 * 1024
"""A transaction holds the other writers up: so it stays short."""

_MESSAGE_BYTES = 64
"""More than what compressing can add to a short text."""

_SHOWN_BAD_LINES = 20


@click.command()
@config_options
@click.option("--ndjson", "form", flag_value="ndjson", help="Every line is a document.")
@click.option("--json", "form", flag_value="json", help="All of it is one document.")
@click.option("--reqid", metavar="TEXT", help="What the server knows duplicates by; for one document alone.")
@click.option("--skip-bad", is_flag=True, help="Pass over lines that are no JSON or too long (exit code 1).")
@click.option("--print-reqid", is_flag=True, help="Print the reqids in place of their number.")
@click.argument("category")
@click.argument("data_type", metavar="TYPE")
@click.argument("data_version", metavar="VERSION")
@click.argument("file", default="-", metavar="[FILE|-]")
def push(
    where: Where,
    form: str | None,
    reqid: str | None,
    skip_bad: bool,
    print_reqid: bool,
    category: str,
    data_type: str,
    data_version: str,
    file: str,
) -> ExitCode:
    """Put messages into a queue: JSON or NDJSON from a file, or from stdin.

    Numbers keep their digits. Nothing after a line that is no JSON is pushed, unless --skip-bad is given.
    """
    if reqid is not None or form == "json":
        if form == "ndjson" or skip_bad:
            raise click.UsageError(
                "--reqid and --json are for one document, --ndjson and --skip-bad for lines"
            )
        form = "json"
    elif skip_bad:
        form = "ndjson"
    try:
        checked_names(category, data_type, data_version)
        reqid = normalise_reqid(reqid) if reqid is not None else None
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    config = where.writer_config()
    with _opened(file) as opened, QueueWriter(config) as writer, _Interruptible(opened).heeding() as source:
        pushing = _Pushing(writer, config, (category, data_type, data_version), reqid)
        return pushing.run(source, form, skip_bad=skip_bad, print_reqid=print_reqid)


@contextmanager
def _opened(file: str) -> Iterator[Source]:
    if file != "-":
        with Path(file).open("rb") as opened:
            yield opened
    elif sys.stdin is None:
        raise OSError("there is no standard input: it is closed")
    else:
        yield cast("BufferedReader", sys.stdin.buffer)


class _InputBroken(Exception):
    """The input cannot be read any further."""


class _Interruptible:
    """A source whose reading Ctrl-C ends, with a KeyboardInterrupt; anywhere else it waits for the next read."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._reading = False
        self._interrupted = False

    def read1(self, size: int, /) -> bytes:
        self._reading = True
        try:
            if self._interrupted:
                raise KeyboardInterrupt
            return self._source.read1(size)
        except OSError as error:
            raise _InputBroken(f"the input cannot be read: {error.strerror or error}") from error
        finally:
            self._reading = False

    @contextmanager
    def heeding(self) -> Iterator[Self]:
        """Take care of SIGINT, where that is possible: in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        former = signal.signal(signal.SIGINT, self._note)
        try:
            yield self
        finally:
            signal.signal(signal.SIGINT, former)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self._interrupted = True
        if self._reading:
            raise KeyboardInterrupt


class _Pushing:
    """One run of the command."""

    def __init__(
        self, writer: QueueWriter, config: QueueWriterConfig, names: tuple[str, str, str], reqid: str | None
    ) -> None:
        self._writer = writer
        self._names = names
        self._reqid = reqid
        self._max_message_bytes = min(config.max_message_bytes, config.max_queue_size)
        self._max_chunk_bytes = min(_CHUNK_BYTES, config.max_queue_size)
        self._pushed = 0
        self._bad = 0
        self._print_reqid = False

    def run(self, source: Source, form: str | None, *, skip_bad: bool, print_reqid: bool) -> ExitCode:
        """Push it all and say how many there were."""
        self._print_reqid = print_reqid
        try:
            for some in self._read(source, form):
                if not self._take(some, skip_bad=skip_bad):
                    break
        except KeyboardInterrupt:
            self._say_partial()
            raise click.Abort from None
        except (_InputBroken, InvalidMessage, QueueError, OSError) as error:
            nothing_done = not self._pushed and not isinstance(error, DurabilityError)
            if nothing_done and isinstance(error, (QueueError, OSError)):
                raise
            click.echo(f"ramen: {error}", err=True)
            self._say_partial()
            return ExitCode.NOT_WELL
        if self._bad:
            self._say_partial()
            return ExitCode.NOT_WELL
        click.echo(f"{_messages(self._pushed)} pushed", err=print_reqid)
        return ExitCode.OK

    def _read(self, source: Source, form: str | None) -> Iterator[list[Document | BadInput]]:
        if form == "json":
            return iter([[_json_input.read_document(source, self._max_message_bytes)]])
        read = _json_input.read_lines if form == "ndjson" else _json_input.read_either
        return read(source, self._max_message_bytes)

    def _take(self, some: list[Document | BadInput], *, skip_bad: bool) -> bool:
        """Push what came together; False: no more is wanted."""
        chunk: list[Document] = []
        size = 0
        for one in some:
            if isinstance(one, BadInput):
                self._push(chunk)
                chunk, size = [], 0
                self._note_bad(one)
                if not skip_bad:
                    return False
                continue
            if len(chunk) >= _CHUNK_MESSAGES or size + len(one.text) > self._max_chunk_bytes:
                self._push(chunk)
                chunk, size = [], 0
            chunk.append(one)
            size += len(one.text) + _MESSAGE_BYTES
        self._push(chunk)
        return True

    def _push(self, chunk: list[Document]) -> None:
        try:
            reqids = self._writer.push_many((*self._names, one.text, self._reqid) for one in chunk)
        except DurabilityError as error:
            lines = f"lines {chunk[0].line} to {chunk[-1].line}"
            raise DurabilityError(f"{lines}, {_messages(len(chunk))}: {error}", error.reqid) from error
        except InvalidMessage as error:
            raise InvalidMessage(f"lines {chunk[0].line} to {chunk[-1].line}: {error}") from error
        self._pushed += len(reqids)
        if self._print_reqid:
            for reqid in reqids:
                click.echo(reqid)

    def _note_bad(self, bad: BadInput) -> None:
        self._bad += 1
        if self._bad <= _SHOWN_BAD_LINES:
            click.echo(f"ramen: {bad}", err=True)

    def _say_partial(self) -> None:
        unsaid = self._bad - _SHOWN_BAD_LINES
        more = f" ({unsaid} more bad lines are not shown)" if unsaid > 0 else ""
        click.echo(f"{_messages(self._pushed)} pushed{more}", err=True)


def _messages(count: int) -> str:
    return "1 message" if count == 1 else f"{count} messages"
