"""For Prometheus: a collector for ``prometheus_client``, a file for the node exporter, and the plain text.

    REGISTRY.register(QueueCollector(reader))             in a program that has an endpoint already (pip install …[prometheus])
    write_textfile(QueueFiles("/var/lib/ramen"), "/var/lib/node_exporter/ramen.prom")       as from cron, or a timer
    text(source)                                          for an endpoint of one's own; ``ramen forward --listen`` is one

``text`` and ``write_textfile`` need no package.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ._sources import Recent, collect, tabulate
from ._table import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from prometheus_client.core import Metric as Family

    from infi.ramen_client.health import Observation

    from ._sources import Source

__all__ = ["CONTENT_TYPE", "QueueCollector", "text", "text_of", "write_text", "write_textfile"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Of ``text``, for an HTTP answer."""

_READABLE_BY_ALL = 0o644


class QueueCollector:
    """A collector for ``prometheus_client``'s registries: reads the queues when Prometheus asks, at most once a second."""

    def __init__(self, source: Source) -> None:
        self._source = Recent(source)

    def describe(self) -> list[Family]:
        """Nothing: so that a registry need not read a queue when this is registered."""
        return []

    def collect(self) -> Iterator[Family]:
        """Yield the families, for the registry."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # noqa: PLC0415 - optional

        for metric, samples in collect(self._source):
            kind = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
            family = kind(metric.name, metric.meaning)
            for labels, value in samples:
                family.add_sample(metric.name, labels, value)
            yield family


def text(source: Source) -> bytes:
    """The metrics in Prometheus' text format (0.0.4). Raises as ``source.observe`` does."""
    return text_of(source.observe())


def text_of(observations: Sequence[Observation]) -> bytes:
    """``text`` of what was observed."""
    lines = []
    for metric, samples in tabulate(observations):
        lines.append(f"# HELP {metric.name} {_escaped(metric.meaning)}")
        lines.append(f"# TYPE {metric.name} {metric.kind.value}")
        lines.extend(f"{metric.name}{_labels(labels)} {_number(value)}" for labels, value in samples)
    return "".join(line + "\n" for line in lines).encode()


def write_textfile(source: Source, path: str | os.PathLike[str]) -> None:
    """Write ``text`` to a file for the node exporter's textfile collector; the name must end in ``.prom``.

    A reader of the file sees the former one or the new one, never a part: it is written beside and renamed. Its mode is 0644, since
    the exporter runs as another user. Raises ``OSError`` when it cannot be written (the former one stays), and as ``source.observe``.
    """
    write_text(text(source), path)


def write_text(content: bytes, path: str | os.PathLike[str]) -> None:
    """Replace a file by ``content``, as ``write_textfile`` does."""
    target = Path(path)
    # The exporter reads *.prom alone, so it never sees this one.
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".new", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), _READABLE_BY_ALL)
        Path(name).replace(target)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise


def _labels(labels: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value, quotes=True)}"' for name, value in labels.items()) + "}"


def _escaped(value: str, *, quotes: bool = False) -> str:
    value = value.replace("\\", "\\\\").replace("\n", "\\n")
    return value.replace('"', '\\"') if quotes else value


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() else repr(value)
