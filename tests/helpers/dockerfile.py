"""A Dockerfile as its stages and instructions, and what a build's context holds of a folder."""

from __future__ import annotations

import fnmatch
import json
import re
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: `COPY`, its flags, and what stands behind them."""

    name: str
    flags: dict[str, str]
    rest: str

    @property
    def words(self) -> list[str]:
        return [str(one) for one in json.loads(self.rest)] if self.is_list else self.rest.split()

    @property
    def is_list(self) -> bool:
        return self.rest.startswith("[")


@dataclass(slots=True)
class Stage:
    """From one FROM to the next."""

    name: str
    base: str
    instructions: list[Instruction] = field(default_factory=list)

    def named(self, *names: str) -> list[Instruction]:
        return [one for one in self.instructions if one.name in names]


def read_stages(path: Path) -> dict[str, Stage]:
    """Stages by name, in order; global ARGs are put into the bases."""
    values: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    for made in _instructions(path.read_text("utf-8")):
        if made.name == "FROM":
            base, _, name = made.rest.partition(" AS ")
            for key, value in values.items():
                base = base.replace("${" + key + "}", value)
            stages[name or str(len(stages))] = Stage(name, base)
        elif not stages:
            key, _, value = made.rest.partition("=")
            values[key] = value
        else:
            list(stages.values())[-1].instructions.append(made)
    return stages


def lineage(stages: dict[str, Stage], name: str) -> list[Stage]:
    """A stage and those that it is FROM: what ends up in its image."""
    found = [stages[name]]
    while found[-1].base in stages:
        found.append(stages[found[-1].base])
    return found


def _instructions(text: str) -> list[Instruction]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    made = []
    for line in filter(None, map(str.strip, joined.splitlines())):
        name, _, rest = line.partition(" ")
        flags = {}
        while found := re.match(r"--([a-z-]+)=(\S+)\s+", rest):
            flags[found[1]] = found[2]
            rest = rest[found.end() :]
        made.append(Instruction(name, flags, rest.strip()))
    return made


def context_files(root: Path, ignore: str) -> set[str]:
    """Paths below `root` that a builder is sent, by the patterns of a .dockerignore: the last one
    that fits a file, or a folder above it, decides."""
    rules = [
        (line.lstrip("!").strip("/"), not line.startswith("!"))
        for line in map(str.strip, ignore.splitlines())
        if line and not line.startswith("#")
    ]
    named = [rule for rule, leaves_out in rules if not leaves_out]
    return {
        name
        for top in named
        for path in _files(root / top)
        if not _left_out(name := path.relative_to(root).as_posix(), rules)
    }


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]


def _left_out(name: str, rules: list[tuple[str, bool]]) -> bool:
    out = False
    parts = name.split("/")
    for pattern, leaves_out in rules:
        above = ["/".join(parts[:at]) for at in range(1, len(parts) + 1)]
        if any(_fits(one, pattern) for one in above):
            out = leaves_out
    return out


def _fits(name: str, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return fnmatch.fnmatch(name.rpartition("/")[2], pattern[3:])
    return name.count("/") == pattern.count("/") and fnmatch.fnmatch(name, pattern)
