from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from queues import make_queue

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from infi.ramen_client.storage import Queue


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    made = make_queue(tmp_path / "queue")
    yield made
    made.close()
