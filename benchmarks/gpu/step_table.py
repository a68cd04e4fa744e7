"""`--gpu`: rows of measured training steps -> a table, a JSON file, verdicts on the promises."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from benchmarks.gpu.gpu_config import STRAIGHTFORWARD, GpuBenchConfig, Row
from focusdpo.data_schemas.errors import UserError
from focusdpo.store.provenance import machine, packages

Verdict = Literal["reached", "missed", "not judged"]
Mfu = Callable[[Row], float | None]
GIB = 2**30
STEP_RATIO, MAPS_SHARE, MFU = 1.03, 0.01, 0.40
CARDS = {("flux", "bf16"): 48, ("flux", "nf4"): 24, ("sdxl", "bf16"): 24}
"""GiB of the card that one pair with gradient checkpointing is promised to fit on."""
NAMES = {"flux": "FLUX.1-dev", "sdxl": "SDXL", "klein": "FLUX.2 Klein"}
_MFU_ON = ("H100", "H200", "GH200")
"""Devices of one and the same peak, for which the MFU is promised."""
_TERMS: dict[str, Any] = {
    "scale": "full",
    "rank": 32,
    "image_size": 512,
    "references": 2,
    "reference_size": 320,
    "text_tokens": 512,
}


@dataclass(frozen=True, slots=True)
class Promise:
    """A figure that the project promises, and what came of it."""

    name: str
    wanted: str
    verdict: Verdict = "not judged"
    value: float | None = None
    note: str = "not measured"
    """Which rows it is from, or why it was not judged."""

    @property
    def shown(self) -> str:
        """The value for people."""
        return "-" if self.value is None else f"{self.value:.4g}"

    @property
    def line(self) -> str:
        return f"{self.verdict:<11}{self.name:<48}{self.shown:>9}  {self.wanted} ({self.note})"


def promises(
    rows: Sequence[Row], facts: dict[str, Any], settings: GpuBenchConfig, mfu: Mfu
) -> list[Promise]:
    """Every promised figure. None is judged of other sizes than those promised for, or of a CPU."""
    other = [name for name, value in _TERMS.items() if getattr(settings, name) != value]
    if settings.on_cpu:
        other.append("device")
    flux = [row for row in rows if row.model == "flux" and not other]
    pairs = _beside(flux, "focus_dpo", "dpo")
    steps = [(row.to_dpo, row) for row, _ in pairs if row.to_dpo is not None]
    memory = [
        ((row.peak_bytes - dpo.peak_bytes) / row.peak_bytes, row)
        for row, dpo in pairs
        if row.peak_bytes and dpo.peak_bytes
    ]
    passes = [
        (float(row.passes - dpo.passes), row)
        for row, dpo in pairs
        if row.passes is not None and dpo.passes is not None
    ]
    verdicts = [
        *(_fits([] if other else rows, facts, *card) for card in CARDS),
        _worst(
            "FLUX.1-dev: focus_dpo step / dpo step",
            f"<= {STEP_RATIO:g}",
            steps,
            lambda value: value <= STEP_RATIO,
        ),
        _worst(
            "FLUX.1-dev: focus maps / peak memory",
            f"< {MAPS_SHARE:g}",
            memory,
            lambda value: value < MAPS_SHARE,
        ),
        _worst("FLUX.1-dev: passes for focus maps", "0", passes, lambda value: value == 0),
        _utilisation(flux, facts, mfu),
        _against_straightforward(flux),
    ]
    why = f"promised for other {', '.join(other)}"
    return [Promise(p.name, p.wanted, note=why) for p in verdicts] if other else verdicts


def _fits(rows: Sequence[Row], facts: dict[str, Any], model: str, base: str) -> Promise:
    """Whether the step ran with no more memory than such a card has."""
    gib = CARDS[model, base]
    name, wanted = f"{NAMES[model]} ({base}), one pair, GiB taken", f"within {gib} GiB"
    for row in rows:
        if (row.model, row.base, row.method) != (model, base, "focus_dpo"):
            continue
        if row.limit_gib != gib or row.pairs != 1:
            continue
        if row.failure and facts["device_gib"] < gib - 1:
            return Promise(name, wanted, note=f"the device has {facts['device_gib']} GiB only")
        if row.failure:
            return Promise(name, wanted, "missed", note=row.failure)
        taken = None if row.reserved_bytes is None else row.reserved_bytes / GIB
        return Promise(name, wanted, "reached", taken, _state(row))
    return Promise(name, wanted)


def _utilisation(rows: Sequence[Row], facts: dict[str, Any], mfu: Mfu) -> Promise:
    """The better of checkpointing on and off, with one pair."""
    name, wanted = "FLUX.1-dev: MFU of focus_dpo, one pair", f">= {MFU:g} on an H100"
    utilisations = [
        (value, row)
        for row in rows
        if row.method == "focus_dpo" and row.pairs == 1 and row.base == "bf16"
        if (value := mfu(row)) is not None
    ]
    if not utilisations:
        return Promise(name, wanted, note="no time, or a device whose peak is not known")
    value, row = max(utilisations, key=lambda pair: pair[0])
    if not any(known in facts["device"] for known in _MFU_ON):
        return Promise(name, wanted, "not judged", value, f"this is {facts['device']}")
    return Promise(name, wanted, "reached" if value >= MFU else "missed", value, _state(row))


def _against_straightforward(rows: Sequence[Row]) -> Promise:
    """A straightforward step that ran out of memory where ours did not is no match for it."""
    name, wanted = "FLUX.1-dev: focus_dpo step / straightforward", "< 1"
    pairs = _beside(rows, "focus_dpo", STRAIGHTFORWARD)
    ratios = [
        (row.seconds / plain.seconds, row)
        for row, plain in pairs
        if row.seconds is not None and plain.seconds is not None
    ]
    if not ratios and any(plain.failure for _, plain in pairs):
        why = "the straightforward one ran out of memory wherever ours ran"
        return Promise(name, wanted, "reached", note=why)
    return _worst(name, wanted, ratios, lambda value: value < 1)


def _beside(rows: Sequence[Row], method: str, other: str) -> list[tuple[Row, Row]]:
    """Rows of two methods in the same setting; the second may have failed."""
    return [
        (row, match)
        for row in rows
        if row.method == method and row.failure is None and row.memory == "joint"
        for match in rows
        if match.method == other and row.same(match)
    ]


def _worst(
    name: str, wanted: str, measured: Iterable[tuple[float, Row]], ok: Callable[[float], bool]
) -> Promise:
    """The largest value over all rows decides."""
    values = list(measured)
    if not values:
        return Promise(name, wanted)
    value, row = max(values, key=lambda pair: pair[0])
    note = f"worst of {len(values)} rows: {_state(row)}"
    return Promise(name, wanted, "reached" if ok(value) else "missed", value, note)


def _state(row: Row) -> str:
    """In what state of the model a figure was measured."""
    checkpointing = "on" if row.checkpointing else "off"
    within = "" if row.limit_gib is None else f", within {row.limit_gib:g} GiB"
    return f"pairs {row.pairs}, checkpointing {checkpointing}, {row.base}{within}"


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


def measure_gpu(out: Path, settings: GpuBenchConfig, report: Callable[[str], None]) -> GpuBench:
    """Measures and writes `gpu_bench.json` and `gpu_bench.md` into `out`, anew after every row, so
    that a run that is stopped leaves what it has; `report` gets a line per row. UserError without a
    CUDA device, and for nf4 without bitsandbytes, before anything is built."""
    from benchmarks.gpu.device import device_facts, peak_flops, require_device

    require_device(settings.device)
    if settings.quantised == "yes" and find_spec("bitsandbytes") is None:
        raise UserError("quantised=yes needs bitsandbytes: pip install bitsandbytes")
    from benchmarks.gpu.gpu_steps import bench_rows

    facts = {**machine(), **packages(), **device_facts(settings.device)}
    given = settings.peak_tflops
    peak = peak_flops(facts["device"]) if given is None else given * 1e12
    bench = GpuBench(facts, settings, peak, ())
    for row in bench_rows(settings):
        bench = GpuBench(facts, settings, peak, (*bench.rows, row))
        write(out, bench)
        report(bench.line(row))
    return bench


def write(out: Path, bench: GpuBench) -> None:
    """Both files, each replaced in one step."""
    from focusdpo.store.local import write_whole

    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(bench.as_dict(), indent=1, sort_keys=True, allow_nan=False)
    write_whole(out / "gpu_bench.json", (text + "\n").encode())
    write_whole(out / "gpu_bench.md", bench.markdown().encode())


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
