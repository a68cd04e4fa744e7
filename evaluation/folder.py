"""What an evaluation of any protocol leaves: its result, and how it is found again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from focusdpo.data_schemas.runs import EvalRow
from focusdpo.store.outputs import holds, local


@dataclass(frozen=True, kw_only=True)
class EvaluateResult:
    """What an evaluation found."""

    out: str
    adapter: str
    rows: list[EvalRow]
    scenes: int
    seconds: float
    resumed: bool
    """True when it was finished before and nothing was painted."""
    notes: tuple[str, ...] = ()
    """What a table must print beside its numbers."""

    def as_dict(self) -> dict[str, Any]:
        """For `--json`: the differences, and where the rest lies."""
        return {
            "command": "evaluate",
            "out": self.out,
            "adapter": self.adapter,
            "scenes": self.scenes,
            "seconds": self.seconds,
            "resumed": self.resumed,
            "notes": list(self.notes),
            "rows": [asdict(row) for row in self.rows if row.group == "all"],
        }


def result_with(where: str, key: str) -> EvaluateResult | None:
    """The result in a folder or at an address, when it was made under this key."""
    if not holds(where, "run.json"):
        return None
    out = local(where, "run.json", "rows.json")
    file = out / "run.json"
    about = json.loads(file.read_text("utf-8"))
    if about.get("key") != key:
        return None
    rows = [EvalRow(**row) for row in json.loads((out / "rows.json").read_text("utf-8"))]
    return EvaluateResult(
        out=where,
        adapter=about["adapter"],
        rows=rows,
        scenes=about["scenes"],
        seconds=about["seconds"],
        resumed=True,
        notes=tuple(about.get("notes", ())),
    )


def write_json(path: Path, value: Any) -> None:
    """The value, all at once."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
