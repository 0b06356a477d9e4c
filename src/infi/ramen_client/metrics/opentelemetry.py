"""For OpenTelemetry: observable instruments, made with the API alone (``pip install infi.ramen_client[otel]``).

    instrument(reader)

Where values go is the program's business, which sets up the SDK and its exporters; without an SDK this does nothing and costs nothing.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from infi.ramen_client.__version__ import __version__

from ._sources import Recent, samples_of
from ._table import METRICS, Kind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opentelemetry.metrics import CallbackOptions, Meter, Observation

    from ._sources import Source
    from ._table import Metric

__all__ = ["instrument"]

_SCOPE = "infi.ramen_client"


def instrument(source: Source, meter: Meter | None = None) -> None:
    """Register an observable instrument for each of ``METRICS``; ``meter``: not that of the global provider.

    The queues are read when the SDK collects, once for all instruments. There is no way back: an instrument lives as long as its
    meter, and one whose queue was closed has no values any more. Raises ``ImportError`` where the API is not installed.
    """
    if meter is None:
        from opentelemetry.metrics import get_meter  # noqa: PLC0415 - optional

        meter = get_meter(_SCOPE, __version__)
    recent = Recent(source)
    for metric in METRICS:
        create = (
            meter.create_observable_counter if metric.kind is Kind.COUNTER else meter.create_observable_gauge
        )
        create(
            metric.opentelemetry_name,
            callbacks=[partial(_observe, recent, metric)],
            unit=metric.unit,
            description=metric.meaning,
        )


def _observe(source: Source, metric: Metric, _options: CallbackOptions) -> Iterable[Observation]:
    from opentelemetry.metrics import Observation  # noqa: PLC0415 - optional

    return [
        Observation(value, {f"ramen.{name}": label for name, label in labels.items()})
        for seen in source.observe()
        for labels, value in samples_of(metric, seen)
    ]
