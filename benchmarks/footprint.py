"""What does a program pay that does nothing with the library but import it and open a queue."""

from __future__ import annotations

import json

from benchmarks.catalogue import RAW, V1, V2
from benchmarks.harness import Benchmark, Column, Figures, Run, Size, start


def measure(run: Run) -> tuple[Figures, dict[str, str]]:
    """Import, then open a writer and a reader on a queue with one message; sizes do not matter here."""
    command = [
        str(run.variant.environment.interpreter()),
        "-c",
        "from benchmarks.footprint_child import main; main()",
        run.variant.adapter,
        str(run.directory),
        json.dumps(run.variant.options),
    ]
    with start(command) as child:
        answer = child.finish()
    return answer["figures"], answer["versions"]


FOOTPRINT = Benchmark(
    name="footprint",
    title="Import time and resident memory (less is better; `raw` is Python itself)",
    variants=(RAW, V1, V2),
    bases=("1.x",),
    headline="import_ms",
    columns=(
        Column("import_ms", "import ms", 1),
        Column("imported_mib", "MiB after import", 1),
        Column("ready_mib", "MiB, queue open", 1),
    ),
    measure=measure,
    normal=Size(1),
    quick=Size(1),
    warm_up_rounds=1,  # the first import compiles and fills the page cache
)
