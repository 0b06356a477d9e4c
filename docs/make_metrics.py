"""Write docs/metrics.md from the table of metrics: ``python docs/make_metrics.py``."""

from __future__ import annotations

from pathlib import Path

from infi.ramen_client.health import Trouble
from infi.ramen_client.metrics import METRICS, Metric

TARGET = Path(__file__).with_name("metrics.md")

HEAD = """\
# Metrics and health

<!-- Written by docs/make_metrics.py from infi.ramen_client.metrics; change that, not this. -->

Values are read from the queue's file when somebody asks, a millisecond for each queue, whatever waits in it. So they cost nothing in
between, are the same whichever process is asked, and counters go on over restarts (but for one, which says so). What is not known has
no sample. Every sample has the label `queue`, `{sender}_{system_serial}`.

## Prometheus

The forwarder serves them, and writes them for the node exporter:

```sh
ramen forward -c ramen.toml --listen 9464                     # http://127.0.0.1:9464/metrics and /healthz
ramen forward -c ramen.toml --textfile /var/lib/node_exporter
```

A program that has an endpoint of its own with `prometheus_client` (`pip install 'infi.ramen_client[prometheus]'`):

```python
from prometheus_client import REGISTRY
from infi.ramen_client.metrics.prometheus import QueueCollector

REGISTRY.register(QueueCollector(reader))
```

In place of `reader` may stand a `Forwarder`, or `QueueFiles(path)` for a queue's file, or a directory of them, that other processes
use; `write_textfile(QueueFiles(path), "….prom")` writes a file from anywhere, and needs no package.

Worth an alert: `ramen_queue_healthy == 0`, and `absent(ramen_queue_healthy)`, for when nobody is there to say it.

## OpenTelemetry

```python
from infi.ramen_client.metrics.opentelemetry import instrument

instrument(reader)
```

registers observable instruments with the API (`pip install 'infi.ramen_client[otel]'`); which SDK and exporter are behind it is the
program's business. Names are as in the table; the labels are the attributes `ramen.queue`, and `ramen.outcome` and so on.

## Something else

`collect(source)` gives what there is as names, labels and values; a source is any object with `observe()`.

## The metrics

| Prometheus | OpenTelemetry | kind | unit | label | meaning |
| --- | --- | --- | --- | --- | --- |
"""

HEALTH = """
## Health

One judgement stands behind `QueueReader.health()`, the exit code of `ramen status`, `/healthz`, `ramen_queue_healthy` and
`ramen_queue_problem`: a queue is well if none of these is the matter. The values of the label `trouble`:

| trouble | what is the matter |
| --- | --- |
"""

THRESHOLDS = """
`stuck` and `no_reader`: messages have waited for 120 s, and for as long nothing was delivered; a server may be restarted without
anybody being called. `token_refused` and `suspect_server` count at once. `at_limit`: 95 % of `max_queue_size`. `disk_full`: less than
1 MiB is free. `losses` (trimmed, expired, damaged) and `refusals` count for 15 minutes, where the same process looks again and again;
`ramen status` looks once, so it knows only of losses while it looks. What an operator removes is no loss. `reader_hangs`: a turn of the
reader's thread took longer than `server_timeout` and 90 s; only its own process can see that.
"""


def _row(metric: Metric) -> str:
    label = f"`{metric.label}`" if metric.label else ""
    return f"| `{metric.name}` | `{metric.opentelemetry_name}` | {metric.kind.value} | `{metric.unit}` | {label} | {metric.meaning} |\n"


def _troubles() -> list[str]:
    source = (Path(__file__).parents[1] / "src/infi/ramen_client/health.py").read_text(encoding="utf-8")
    rows = []
    for trouble in Trouble:
        text = source.partition(f'    {trouble.name} = "')[2].partition('"""')[2].partition('"""')[0]
        rows.append(f"| `{trouble.value}` | {text} |\n")
    return rows


def page() -> str:
    """The whole document."""
    return HEAD + "".join(map(_row, METRICS)) + HEALTH + "".join(_troubles()) + THRESHOLDS


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
