"""The options that commands share: where the configuration is, and which queue is meant.

A command that needs the whole configuration asks ``Where`` for it; one that only looks at a queue asks for the queue's place, and
works without server and token, on a host where nobody knows more than the directory.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from infi.ramen_client.admin import QueueAdmin
    from infi.ramen_client.config import QueueReaderConfig, QueueWriterConfig

_VARIABLE = "RAMEN_CONFIG"

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)([smhd])", re.ASCII).fullmatch


@dataclass(frozen=True, slots=True)
class QueuePlace:
    """A queue's file, and what the configuration says of it; None where no configuration was given that would know."""

    path: Path
    max_queue_size: int | None
    blacklist_ttl: float | None


@dataclass(frozen=True, slots=True)
class Where:
    """What the command line says of the configuration and of the queue; None: nothing."""

    config_file: str | None
    queue_dir: str | None
    sender: str | None
    system_serial: str | None

    def reader_config(self, **fields: Any) -> QueueReaderConfig:
        """The whole configuration of a reader; ``fields`` go over what the command line gives. Raises ``ValidationError``."""
        from infi.ramen_client.config import QueueReaderConfig  # noqa: PLC0415 - not needed for --help

        return QueueReaderConfig.load(self.config_file, environ=_environ(), **{**self._given(), **fields})

    def writer_config(self, **fields: Any) -> QueueWriterConfig:
        """As ``reader_config``, a writer's."""
        from infi.ramen_client.config import QueueWriterConfig  # noqa: PLC0415

        return QueueWriterConfig.load(self.config_file, environ=_environ(), **{**self._given(), **fields})

    def queue_place(self) -> QueuePlace:
        """The file of the one queue that is meant; it exists.

        Sender and serial may be missing where the directory has one queue that fits. Raises ``ValidationError`` where several do
        and for wrong values, ``QueueUnusable`` where none does.
        """
        from infi.ramen_client.admin import find_queue  # noqa: PLC0415
        from infi.ramen_client.config import QueueReaderConfig, load_fields  # noqa: PLC0415

        names = ("queue_dir", "sender", "system_serial", "max_queue_size", "blacklist_ttl")
        known = load_fields(names, self.config_file, environ=_environ(), **self._given())
        path = find_queue(
            known.get("queue_dir", QueueReaderConfig.queue_dir),
            known.get("sender"),
            known.get("system_serial"),
        )
        if self.config_file is not None:  # then what it leaves out has its default in the program, too
            known = {
                "max_queue_size": QueueReaderConfig.max_queue_size,
                "blacklist_ttl": QueueReaderConfig.blacklist_ttl,
                **known,
            }
        return QueuePlace(path, known.get("max_queue_size"), known.get("blacklist_ttl"))

    def open_queue(self) -> QueueAdmin:
        """The queue itself, for looking at; close it. Raises as ``queue_place`` does, and ``QueueUnusable``."""
        from infi.ramen_client.admin import QueueAdmin  # noqa: PLC0415

        place = self.queue_place()
        return QueueAdmin(place.path, max_queue_size=place.max_queue_size)

    def _given(self) -> dict[str, str]:
        given = {"queue_dir": self.queue_dir, "sender": self.sender, "system_serial": self.system_serial}
        return {name: value for name, value in given.items() if value is not None}


def config_file_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``--config``, as ``config_file``."""
    return click.option(
        "--config",
        "-c",
        "config_file",
        metavar="FILE",
        envvar=_VARIABLE,
        help=f"The configuration (TOML); ${_VARIABLE} if not given.",
    )(command)


def config_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``--config``, ``--queue-dir``, ``--sender`` and ``--system-serial``, as one keyword ``where``."""

    @config_file_option
    @click.option("--queue-dir", metavar="DIR", help="The directory of the queue, over the configuration's.")
    @click.option("--sender", metavar="NAME", help="The sender, over the configuration's.")
    @click.option(
        "--system-serial", metavar="NUMBER", help="The system's serial number, over the configuration's."
    )
    @wraps(command)
    def with_where(
        *arguments: Any,
        config_file: str | None,
        queue_dir: str | None,
        sender: str | None,
        system_serial: str | None,
        **options: Any,
    ) -> Any:
        return command(*arguments, where=Where(config_file, queue_dir, sender, system_serial), **options)

    return with_where


def selection_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command what selects messages or dead letters, as one keyword ``selection``: a ``Selection``, None where nothing is said."""

    @click.option("--category", metavar="TEXT", help="Those of this category.")
    @click.option("--data-type", metavar="TEXT", help="Those of this data type.")
    @click.option(
        "--older-than",
        type=Duration(),
        metavar="DURATION",
        help="Those that have been there for longer: 90s, 30m, 1h, 7d.",
    )
    @click.option("--all", "everything", is_flag=True, help="All of them.")
    @wraps(command)
    def with_selection(
        *arguments: Any,
        category: str | None,
        data_type: str | None,
        older_than: float | None,
        everything: bool,
        **options: Any,
    ) -> Any:
        from infi.ramen_client.admin import Selection  # noqa: PLC0415

        given = (category, data_type, older_than)
        selection = None
        if everything or any(part is not None for part in given):
            selection = Selection(*given, everything)
        return command(*arguments, selection=selection, **options)

    return with_selection


class Duration(click.ParamType[float]):
    """A length of time: a number and s, m, h or d, as ``90s`` or ``1.5h``; the value is in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """``value`` in seconds."""
        if isinstance(value, int | float):
            return float(value)
        found = _DURATION(str(value))
        if found is None:
            self.fail(
                f"{value!r} is not a duration: give a number and s, m, h or d, as 90s, 30m, 1h, 7d",
                param,
                ctx,
            )
        return float(found[1]) * _UNITS[found[2]]


def _environ() -> dict[str, str]:
    """The environment without the variable that is the command's own."""
    return {name: value for name, value in os.environ.items() if name != _VARIABLE}
