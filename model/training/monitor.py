"""What happened in training, by step and by noise level: Parquet tables and TensorBoard curves.

A(t), |M_s|/|M_prior|, e_w - e_w^ref and e_l - e_l^ref apart, implicit accuracy, shares of the loss,
token confusion. Parts are written at checkpoints only, so a resumed run neither loses nor repeats a
row. Shapes: B pairs, 2B images (winners, then losers), N tokens.
"""

from __future__ import annotations

import logging
import math
import re
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from focusdpo.data_schemas.errors import TakenAway, UserError
from focusdpo.data_schemas.tables import arrow_table
from focusdpo.model.focus import FocusMaps, branch_parts
from focusdpo.model.focus_config import FocusConfig
from focusdpo.model.objectives import implicit_accuracy
from focusdpo.model.step import StepOutput
from focusdpo.model.training.batches import PairBatch
from focusdpo.model.training.config import GuardConfig
from focusdpo.model.training.trackers import Trackers
from focusdpo.store.local import write_whole

NUM_BUCKETS = 10
PER_PAIR = (
    "sigma",
    "alignment",
    "lose_alignment",
    "gate",
    "structure_share",
    "token_confusion",
    "win_error",
    "lose_error",
    "win_gap",
    "lose_gap",
    "logit",
    "pair_gradient",
    "safeguard",
    "implicit_accuracy",
    "share_background",
    "share_matched",
    "share_structure",
    "share_detail",
)
"""Columns with a value per pair; NaN where an objective has none."""
_PART = re.compile(r"(steps|buckets)-(\d+)-(\d+)\.parquet")

Table = dict[str, NDArray[np.float64]]


@torch.no_grad()
def observe(output: StepOutput, batch: PairBatch, config: FocusConfig) -> Table:
    """`PER_PAIR` columns of one forward pass, each (B,)."""
    columns: dict[str, Tensor] = {"sigma": output.sigma_B}
    num = len(batch)
    columns["win_error"] = output.error_BN[:num].mean(1)
    if output.ref_error_BN is not None:
        gap_B = (output.error_BN - output.ref_error_BN).mean(1)
        columns["win_gap"], columns["lose_gap"] = gap_B.chunk(2)
        columns["lose_error"] = output.error_BN[num:].mean(1)
        columns["logit"] = output.loss.logit_B
        columns["pair_gradient"] = torch.sigmoid(-output.loss.logit_B)
        columns["implicit_accuracy"] = implicit_accuracy(output.loss.logit_B)
    if output.safeguard_B is not None:
        columns["safeguard"] = output.safeguard_B
    columns |= _shares(output, batch, config)
    if output.maps is not None:
        columns |= _map_columns(output.maps, batch)
    missing_B = torch.full_like(output.sigma_B, torch.nan)
    values = torch.stack([columns.get(name, missing_B) for name in PER_PAIR]).double().cpu().numpy()
    return dict(zip(PER_PAIR, values, strict=True))


def _map_columns(maps: FocusMaps, batch: PairBatch) -> dict[str, Tensor]:
    num = len(batch)
    prior_BN = batch.priors.prior_BN
    return {
        "alignment": maps.alignment_B[:num],
        "lose_alignment": maps.alignment_B[num:],
        "gate": maps.gate_B[:num],
        "structure_share": maps.structure_BN[:num].sum(1) / prior_BN.sum(1),
        "token_confusion": maps.confusion_B[:num],
    }


def _shares(output: StepOutput, batch: PairBatch, config: FocusConfig) -> dict[str, Tensor]:
    """Shares of the weighted error W e, over both branches, that lie in each mask."""
    branches = output.error_BN.shape[0] // len(batch)
    prior_BN = batch.priors.prior_BN.repeat(branches, 1)
    mass_BN = output.error_BN
    if output.weight_BN is not None:
        mass_BN = mass_BN * output.weight_BN

    def share(mask_BN: Tensor) -> Tensor:
        pairs_B = (mass_BN * mask_BN).sum(1).unflatten(0, (branches, -1)).sum(0)
        return pairs_B / mass_BN.sum(1).unflatten(0, (branches, -1)).sum(0)

    shares = {"share_background": share(1 - prior_BN)}
    if (maps := output.maps) is not None:
        shares["share_matched"] = share(prior_BN * maps.matched_BN)
        shares["share_structure"] = share(maps.structure_BN)
        shares["share_detail"] = share(_detail_part(maps, prior_BN, config))
    return shares


def _detail_part(maps: FocusMaps, prior_BN: Tensor, config: FocusConfig) -> Tensor:
    """Which part of each token's weight is owed to M_d."""
    parts = branch_parts(prior_BN, maps.matched_BN, maps.detail_BN, maps.gate_B, config)
    total_BN = parts.total()
    return torch.where(total_BN > 0, parts.detail / total_BN, 0.0)


def mean_present(values: NDArray[np.float64]) -> float:
    """Mean of what is not NaN; NaN if nothing is."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else float("nan")


def bucket_rows(step: int, table: Table) -> list[dict[str, float]]:
    """Means of one step's pairs by tenth of sigma; empty buckets have no row."""
    bucket_B = np.clip((table["sigma"] * NUM_BUCKETS).astype(int), 0, NUM_BUCKETS - 1)
    rows = []
    for bucket in np.unique(bucket_B):
        inside_B = bucket_B == bucket
        means = {name: mean_present(values[inside_B]) for name, values in table.items()}
        low = bucket / NUM_BUCKETS
        edges = {"sigma_low": low, "sigma_high": low + 1 / NUM_BUCKETS}
        rows.append(
            {"step": step, "bucket": int(bucket), "count": int(inside_B.sum()), **edges, **means}
        )
    return rows


class Monitor:
    """Gathers rows and writes them for a report: `steps.parquet` and `buckets.parquet`."""

    def __init__(
        self, out_dir: Path, *, start: int, tensorboard: bool, trackers: Trackers | None = None
    ) -> None:
        """Goes on after `start` steps: rows of later steps, from a killed run, are dropped."""
        self._trackers = trackers
        self._out_dir = out_dir
        self._parts = out_dir / "metrics"
        self._parts.mkdir(parents=True, exist_ok=True)
        self._rows: dict[str, list[dict[str, float]]] = {"steps": [], "buckets": []}
        for path in self._parts.iterdir():
            match = _PART.fullmatch(path.name)
            if match is None or int(match[3]) > start:
                path.unlink()
        self._writer = _writer(out_dir / "tensorboard", start) if tensorboard else None

    def add(self, step: int, table: Table, scalars: Mapping[str, float]) -> dict[str, float]:
        """One step's row: the scalars and the means of the per-pair columns."""
        row = {"step": step, **scalars} | {name: mean_present(v) for name, v in table.items()}
        self._rows["steps"].append(row)
        self._rows["buckets"] += bucket_rows(step, table)
        self._show("train", step, row)
        return row

    def add_look(self, row: Mapping[str, float]) -> None:
        """What a look at validation found, for who watches."""
        self._show("validation", int(row["step"]), row)

    def add_sheet(self, step: int, pixels: NDArray[np.uint8]) -> None:
        """Sample pictures (H, W, 3), for who watches."""
        if self._writer is not None:
            self._writer.add_image("samples", pixels, step, dataformats="HWC")
        if self._trackers is not None:
            self._trackers.picture("samples", pixels, step)

    def _show(self, group: str, step: int, row: Mapping[str, float]) -> None:
        values = {f"{group}/{n}": v for n, v in row.items() if n != "step" and v == v}
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
        if self._trackers is not None:
            self._trackers.log(values, step)

    def flush(self) -> None:
        """Writes the rows since the last flush as parts; call before a checkpoint."""
        if not self._rows["steps"]:
            return
        first, last = self._rows["steps"][0]["step"], self._rows["steps"][-1]["step"]
        for name, rows in self._rows.items():
            data = _to_parquet(rows)
            write_whole(self._parts / f"{name}-{first:06.0f}-{last:06.0f}.parquet", data)
            rows.clear()
        if self._writer is not None:
            self._writer.flush()

    def finish(self) -> list[dict[str, Any]]:
        """Joins the parts into the two tables; returns the rows of the first."""
        import pyarrow as pa

        self.flush()
        tables = {}
        for name in self._rows:
            parts = sorted(self._parts.glob(f"{name}-*.parquet"))
            if not parts:
                raise TakenAway(
                    f"{self._parts}: the tables of this run were taken away; run the same command "
                    "again: what was finished is kept"
                )
            tables[name] = pa.concat_tables([_part(part) for part in parts])
            write_whole(self._out_dir / f"{name}.parquet", _table_bytes(tables[name]))
        self.close()
        return tables["steps"].to_pylist()

    def close(self) -> None:
        """Lets go of the TensorBoard file and of trackers."""
        if self._trackers is not None:
            self._trackers.close()
            self._trackers = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _part(path: Path) -> Any:
    """Rows of some steps, as an Arrow table. UserError when they were damaged."""
    import pyarrow as pa

    try:
        return arrow_table(path.read_bytes())
    except (pa.ArrowException, OSError) as error:
        run = path.parent.parent
        raise UserError(
            f"{path}: damaged ({error}); remove {run} and run the same command again: training "
            "begins anew"
        ) from error


def _writer(directory: Path, start: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(directory), purge_step=start + 1)


def _to_parquet(rows: list[dict[str, float]]) -> bytes:
    import pyarrow as pa

    return _table_bytes(pa.Table.from_pylist(rows))


def _table_bytes(table: Any) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue())


log = logging.getLogger(__name__)

_MIN_HISTORY = 10


class Guard:
    """Running means of a run; its state goes into checkpoints, so a resumed run decides alike."""

    def __init__(self, config: GuardConfig, state: dict[str, Any] | None = None) -> None:
        fresh: dict[str, Any] = {
            "norms": [],
            "rises": [],
            "shares": [],
            "warned": 0,
            "saturated": 0,
            "usual": 0.0,
        }
        self._config = config
        self.state = fresh | (state or {})
        """For JSON; numbers survive exactly."""

    def _mean_of(self, name: str, value: float) -> float | None:
        """The mean of the last values once there are enough of them."""
        values = self._remember(name, value)
        return statistics.fmean(values) if len(values) == self._config.window else None

    def _remember(self, name: str, value: float) -> list[float]:
        values: list[float] = self.state[name]
        values.append(value)
        del values[: -self._config.window]
        return values

    def check_finite(self, step: int, loss: float, norm: float, good: str) -> None:
        """UserError when there is nothing sensible to go on with; `good` says what is safe."""
        if math.isfinite(loss) and math.isfinite(norm):
            return
        raise UserError(
            f"training stopped at step {step}: loss {loss}, gradient norm {norm}. {good} "
            "Lower lr or objective.beta, or set mixed_precision=no, and start in a new folder."
        )

    def is_spike(self, step: int, norm: float) -> bool:
        """Whether this step's gradient is so far out of line that it is better left out.

        Usual is the highest running median so far: a preference that most pairs have learned has
        hardly any gradient, and the few hard pairs that are left must not look like spikes."""
        norms = self.state["norms"]
        if len(norms) >= _MIN_HISTORY:
            usual = self.state["usual"] = max(self.state["usual"], statistics.median(norms))
            if norm > self._config.spike * usual > 0:
                log.warning("step %d skipped: gradient norm %.3g, usual %.3g", step, norm, usual)
                return True
        self._remember("norms", norm)
        return False

    def watch_winner(self, step: int, gap: float, error: float) -> None:
        """Warns when the winner's error has risen above the reference policy's: DPO may win by
        harming the loser more. `gap` is e_w - e_w^ref, `error` e_w."""
        if not math.isfinite(gap):
            return
        rise, window = self._mean_of("rises", gap / max(error - gap, 1e-12)), self._config.window
        if rise is None or step - self.state["warned"] < window:
            return
        if rise > self._config.winner_rise:
            self.state["warned"] = step
            log.warning(
                "step %d: the winner's error is %.1f %% above the reference policy's over the last "
                "%d steps; lower objective.beta or lr, or set objective.eta",
                step,
                100 * rise,
                self._config.window,
            )

    def watch_saturation(self, step: int, share: float) -> None:
        """Warns once when the pairs are learned: what is left of their gradient, sigmoid(-logit),
        has become so small that only noise and the anchor move the weights."""
        if not math.isfinite(share):
            return
        mean = self._mean_of("shares", share)
        if mean is not None and mean < self._config.saturation and not self.state["saturated"]:
            self.state["saturated"] = step
            log.warning(
                "step %d: the pairs are learned; over the last %d steps each gave %.1f %% of its "
                "full gradient. More steps teach nothing: lower objective.beta, or add pairs",
                step,
                self._config.window,
                100 * mean,
            )
