"""What the project promises of a training step on a GPU, judged on rows of `bench --gpu`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from focusdpo.model.gpu_bench_config import STRAIGHTFORWARD, GpuBenchConfig, Row

Verdict = Literal["reached", "missed", "not judged"]
Mfu = Callable[[Row], float | None]
GIB = 2**30
STEP_RATIO, MAPS_SHARE, MFU = 1.03, 0.01, 0.40
CARDS = {("flux", "bf16"): 48, ("flux", "nf4"): 24, ("sdxl", "bf16"): 24}
"""GiB of the card that one pair with gradient checkpointing is promised to fit on."""
NAMES = {"flux": "FLUX.1-dev", "sdxl": "SDXL"}
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
    found = [
        *(_fits([] if other else rows, facts, *card) for card in CARDS),
        _step_ratio(flux),
        _map_memory(flux),
        _map_passes(flux),
        _utilisation(flux, facts, mfu),
        _against_straightforward(flux),
    ]
    why = f"promised for other {', '.join(other)}"
    return [Promise(p.name, p.wanted, note=why) for p in found] if other else found


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


def _step_ratio(rows: Sequence[Row]) -> Promise:
    found = [
        (row.to_dpo, row) for row, _ in _beside(rows, "focus_dpo", "dpo") if row.to_dpo is not None
    ]
    name = "FLUX.1-dev: focus_dpo step / dpo step"
    return _worst(name, f"<= {STEP_RATIO:g}", found, lambda value: value <= STEP_RATIO)


def _map_memory(rows: Sequence[Row]) -> Promise:
    found = [
        ((row.peak_bytes - dpo.peak_bytes) / row.peak_bytes, row)
        for row, dpo in _beside(rows, "focus_dpo", "dpo")
        if row.peak_bytes and dpo.peak_bytes
    ]
    name = "FLUX.1-dev: focus maps / peak memory"
    return _worst(name, f"< {MAPS_SHARE:g}", found, lambda value: value < MAPS_SHARE)


def _map_passes(rows: Sequence[Row]) -> Promise:
    found = [
        (float(row.passes - dpo.passes), row)
        for row, dpo in _beside(rows, "focus_dpo", "dpo")
        if row.passes is not None and dpo.passes is not None
    ]
    return _worst("FLUX.1-dev: passes for focus maps", "0", found, lambda value: value == 0)


def _utilisation(rows: Sequence[Row], facts: dict[str, Any], mfu: Mfu) -> Promise:
    """The better of checkpointing on and off, with one pair."""
    name, wanted = "FLUX.1-dev: MFU of focus_dpo, one pair", f">= {MFU:g} on an H100"
    found = [
        (value, row)
        for row in rows
        if row.method == "focus_dpo" and row.pairs == 1 and row.base == "bf16"
        if (value := mfu(row)) is not None
    ]
    if not found:
        return Promise(name, wanted, note="no time, or a device whose peak is not known")
    value, row = max(found, key=lambda pair: pair[0])
    if not any(known in facts["device"] for known in _MFU_ON):
        return Promise(name, wanted, "not judged", value, f"this is {facts['device']}")
    return Promise(name, wanted, "reached" if value >= MFU else "missed", value, _state(row))


def _against_straightforward(rows: Sequence[Row]) -> Promise:
    """A straightforward step that ran out of memory where ours did not is no match for it."""
    name, wanted = "FLUX.1-dev: focus_dpo step / straightforward", "< 1"
    pairs = _beside(rows, "focus_dpo", STRAIGHTFORWARD)
    found = [
        (row.seconds / plain.seconds, row)
        for row, plain in pairs
        if row.seconds is not None and plain.seconds is not None
    ]
    if not found and any(plain.failure for _, plain in pairs):
        why = "the straightforward one ran out of memory wherever ours ran"
        return Promise(name, wanted, "reached", note=why)
    return _worst(name, wanted, found, lambda value: value < 1)


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
    name: str, wanted: str, found: Iterable[tuple[float, Row]], ok: Callable[[float], bool]
) -> Promise:
    """The largest value over all rows decides."""
    values = list(found)
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
