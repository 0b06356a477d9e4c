"""The collector of this repository, as it comes."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from infi.ramen_server import CollectorServer, ServerConfig

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def collector(directory: str) -> Iterator[tuple[int, str]]:
    """Run it on the directory; gives its port and a token."""
    with CollectorServer(ServerConfig(Path(directory), port=0)) as server:
        assert server.first_token is not None
        yield server.port, server.first_token
