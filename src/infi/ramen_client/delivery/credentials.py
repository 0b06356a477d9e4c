"""The headers that every request carries, with a token that may change while a program runs.

The token is read once, and again when its file has changed (noticed within two seconds, see ``_files``) or the program has
assigned another to its configuration. A file that cannot be used in between, being replaced, say, leaves the token that was
last read in use, with a warning: only a server can tell that a token is no good. Once it did, ``reread`` asks the file at once.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING

from infi.ramen_client.errors import ValidationError

from ._files import FileWatch
from .judging import request_headers

if TYPE_CHECKING:
    from collections.abc import Callable

    from infi.ramen_client.config import QueueReaderConfig

    from .judging import Headers

logger = logging.getLogger("ramen_client")


class Credentials:
    """The request headers of one configuration. Used by one thread.

    Building one reads the token: ``ValidationError`` where there is none to be read.
    """

    def __init__(self, config: QueueReaderConfig, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._monotonic = monotonic
        self._source, self._watch = self._look()
        self._headers = request_headers(config)

    def current(self) -> Headers:
        """The headers for the next request. Costs a ``stat`` once a second; never raises."""
        given = self._given()
        if given == self._source and not self._watch.changed():
            return self._headers
        # Once for each change, whether or not it can be used: ``reread`` is for what comes after.
        self._source, self._watch = self._look()
        try:
            self._headers = request_headers(self._config)
        except ValidationError as error:
            logger.warning("the token that was read before stays in use: %s", error)
        return self._headers

    def reread(self) -> Headers:
        """The headers as the token is now: for after the server refused it. ``ValidationError`` as at the beginning."""
        self._source, self._watch = self._look()
        self._headers = request_headers(self._config)
        return self._headers

    def _given(self) -> tuple[object, object]:
        return self._config.auth_token, self._config.auth_token_file

    def _look(self) -> tuple[tuple[object, object], FileWatch]:
        given = self._given()
        file = given[1]
        paths = (os.fspath(file),) if isinstance(file, str | os.PathLike) else ()
        return given, FileWatch(paths, self._monotonic)
