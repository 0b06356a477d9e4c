"""What monitoring wants to know of queues: one table of metrics, one hook, and adapters for Prometheus and OpenTelemetry.

The hook is ``Source``: an object whose ``observe()`` says what its queues are like at this moment. A ``QueueReader`` is one, a
``Forwarder`` is one, and ``QueueFiles`` makes one of files that other processes write and read. A program with another monitoring
system asks a source itself:

    for metric, samples in collect(reader):
        for labels, value in samples: …

Nothing is counted on the way of a message: values are read when somebody asks, from the queue's file, where the books stand. So they
cost nothing in between, they are the same whichever process is asked, and counters go on over restarts.

``METRICS`` is the table (docs/metrics.md shows it). ``prometheus`` and ``opentelemetry`` are the adapters; each imports its package
when it is used, so that none is needed here.
"""

from __future__ import annotations

from ._sources import QueueFiles, Source, collect
from ._table import METRICS, Kind, Metric

__all__ = ["METRICS", "Kind", "Metric", "QueueFiles", "Source", "collect"]
