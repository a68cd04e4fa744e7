"""`focusdpo bench --gpu`: rows measured by `model.gpu_bench` -> a table, a JSON file, verdicts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.bench.gpu_promises import GIB, NAMES, Promise, promises
from focusdpo.flows.machine import machine, packages
from focusdpo.model.gpu_bench_config import GpuBenchConfig, Row

COLUMNS = (
    "model",
    "base",
    "pairs",
    "checkpointing",
    "memory",
    "limit",
    "method",
    "step (s)",
    "pairs/s",
    "step / dpo",
    "MFU",
    "peak (GiB)",
    "taken (GiB)",
    "passes",
)
_UNMEASURED = "not measured"


@dataclass(frozen=True, slots=True)
class GpuBench:
    """All that was measured so far."""

    facts: dict[str, Any]
    """The device, and versions."""
    settings: GpuBenchConfig
    peak_flops: float | None
    rows: tuple[Row, ...]

    def mfu(self, row: Row) -> float | None:
        """Model FLOPs per second / the device's peak."""
        if row.seconds is None or row.step_flops is None or self.peak_flops is None:
            return None
        return row.step_flops / row.seconds / self.peak_flops

    def promises(self) -> list[Promise]:
        """Every promised figure, whether it could be judged or not."""
        return promises(self.rows, self.facts, self.settings, self.mfu)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "facts": self.facts,
            "settings": self.settings.model_dump(mode="json"),
            "peak_flops": self.peak_flops,
            "rows": [{**row.as_dict(), "mfu": self.mfu(row)} for row in self.rows],
            "promises": [asdict(promise) for promise in self.promises()],
        }

    def markdown(self) -> str:
        """The page that can be committed."""
        facts = ", ".join(f"{key} {value}" for key, value in self.facts.items() if key != "device")
        peak = "not known" if self.peak_flops is None else f"{self.peak_flops / 1e12:g} TFLOP/s"
        judged = [
            (p.verdict, p.name, p.shown, p.wanted.replace("<", "&lt;"), p.note)
            for p in self.promises()
        ]
        parts = [
            f"# {self.facts['device']}",
            f"{facts}; peak: {peak}.",
            _table(("verdict", "promise", "value", "wanted", "from"), judged),
            _table(COLUMNS, [self.cells(row) for row in self.rows]),
        ]
        return "\n\n".join(parts) + "\n"

    def cells(self, row: Row) -> tuple[str, ...]:
        """A row of the table, as COLUMNS."""
        state = (
            NAMES[row.model],
            row.base,
            str(row.pairs),
            "on" if row.checkpointing else "off",
            row.memory,
            "-" if row.limit_gib is None else f"{row.limit_gib:g} GiB",
            row.method,
        )
        if row.seconds is None:
            why = row.failure or _UNMEASURED
            return (*state, why, *("-",) * (len(COLUMNS) - len(state) - 1))
        mfu = self.mfu(row)
        return (
            *state,
            f"{row.seconds:.4g}",
            f"{row.pairs / row.seconds:.3g}",
            "-" if row.to_dpo is None else f"{row.to_dpo:.3f}",
            "-" if mfu is None else f"{mfu:.1%}",
            _UNMEASURED if row.peak_bytes is None else f"{row.peak_bytes / GIB:.2f}",
            _UNMEASURED if row.reserved_bytes is None else f"{row.reserved_bytes / GIB:.2f}",
            str(row.passes),
        )

    def line(self, row: Row) -> str:
        """A row for the terminal."""
        cells = dict(zip(COLUMNS, self.cells(row), strict=True))
        state = f"{cells['model']} {cells['base']} {cells['memory']}, pairs {cells['pairs']}"
        state += f", checkpointing {cells['checkpointing']}"
        state += "" if row.limit_gib is None else f", within {cells['limit']}"
        if row.seconds is None:
            return f"{state}: {row.method}: {cells['step (s)']}"
        memory = cells["peak (GiB)"] + (" GiB" if row.peak_bytes else "")
        figures = f"{cells['step (s)']} s, MFU {cells['MFU']}, memory {memory}"
        return f"{state}: {row.method}: {figures}"


def measure_gpu(out: Path, settings: GpuBenchConfig, told: Callable[[str], None]) -> GpuBench:
    """Measures and writes `gpu_bench.json` and `gpu_bench.md` into `out`, anew after every row, so
    that a run that is stopped leaves what it has; `told` gets a line per row. UserError without a
    CUDA device, and for nf4 without bitsandbytes, before anything is built."""
    from focusdpo.model.flops import peak_flops
    from focusdpo.model.gpu_device import device_facts, require_device

    require_device(settings.device)
    if settings.quantised == "yes" and find_spec("bitsandbytes") is None:
        raise UserError("quantised=yes needs bitsandbytes: pip install bitsandbytes")
    from focusdpo.model.gpu_bench import bench_rows

    facts = {**machine(), **packages(), **device_facts(settings.device)}
    given = settings.peak_tflops
    peak = peak_flops(facts["device"]) if given is None else given * 1e12
    bench = GpuBench(facts, settings, peak, ())
    for row in bench_rows(settings):
        bench = GpuBench(facts, settings, peak, (*bench.rows, row))
        write(out, bench)
        told(bench.line(row))
    return bench


def write(out: Path, bench: GpuBench) -> None:
    """Both files, each replaced in one step."""
    from focusdpo.model.checkpoint import write_file

    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(bench.as_dict(), indent=1, sort_keys=True, allow_nan=False)
    write_file(out / "gpu_bench.json", (text + "\n").encode())
    write_file(out / "gpu_bench.md", bench.markdown().encode())


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
