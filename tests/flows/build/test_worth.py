"""What a build and a training say about a dataset: what it is worth, and what would help."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import get_args

import pytest
import toy_suite
from in_process import run
from toy_root import Toy

from focusdpo.data_schemas.pairs import Reason
from focusdpo.flows.build import worth
from focusdpo.pipeline.audit import Audit
from focusdpo.store.versions import open_version

Capture = pytest.CaptureFixture[str]


def test_every_reason_has_a_remedy_that_names_settings_there_are() -> None:
    from focusdpo.flows.config import BuildRun
    from focusdpo.flows.settings import field_at

    assert set(worth.REMEDIES) == set(get_args(Reason))
    for text in worth.REMEDIES.values():
        for name in re.findall(r"\b(?:pair|disrupt|generate|compose)\.\w+", text):
            assert field_at(BuildRun, name)


def test_a_build_ends_with_what_its_pairs_are_worth(toy: Toy, capsys: Capture) -> None:
    code, out, _ = run(toy.arguments, capsys)
    version = open_version(str(toy.root))
    assert code == 0
    counts = {
        name: sum(name in row.subject_ids for row in version.rows)
        for name in ("red", "blue", "green")
    }
    (line,) = [line for line in out.splitlines() if "pairs by subject:" in line]
    assert all(f"{name} {count}" in line for name, count in counts.items())
    alone = sum(row.num_subjects == 1 for row in version.rows)
    assert f"pairs with one subject {alone}, two subjects {len(version.rows) - alone}" in out
    rejects = sorted(version.manifest["rejects"].items(), key=lambda row: -row[1])
    for reason, count in rejects[:3]:
        assert f"{count} rejected, {reason}: {worth.REMEDIES[reason]}" in out
    train = len(version.rows_of("train"))
    assert f"only {train} pairs to train on, which is few" in out
    assert out.splitlines()[-1].startswith("next: mend that and run the same command again")


def test_what_is_good_enough_is_trained_on() -> None:
    good = worth.Worth(
        pairs=100, train_pairs=90, by_subject={"a": 60, "b": 60, "c": 0},
        by_num_subjects={1: 80, 2: 20}, rejects={},
    )  # fmt: skip
    assert list(worth.next_steps(good, "data")) == [
        "next: look at the pairs (focusdpo report --root data --out dataset.html) or train: "
        "focusdpo train --root data --out RUN"
    ]
    assert "a 60, b 60; none: c" in list(worth.worth_lines(good))[1]
    alone = dataclasses.replace(good, by_num_subjects={1: 100})
    (line, _) = worth.next_steps(alone, "data")
    assert "all pairs show a single subject" in line and "compose.pair_rate" in line


def test_many_subjects_are_told_in_one_line() -> None:
    many = worth.Worth(
        pairs=500, train_pairs=500, by_subject={f"s{at:03}": at for at in range(300)},
        by_num_subjects={1: 500}, rejects={},
    )  # fmt: skip
    line = list(worth.worth_lines(many))[1]
    assert line.startswith("  pairs by subject: s299 299, s298 298") and len(line) < 200
    assert "s001 1; none: s000" in line


def test_a_training_warns_of_what_it_will_learn_little_from(
    toy: Toy, capsys: Capture, tmp_path: Path
) -> None:
    assert run([*toy.arguments, "--set", "compose.pair_rate=0"], capsys)[0] == 0
    version = open_version(str(toy.root))
    pairs = len(version.rows_of("train"))
    Audit(version.store).record(version.read(version.rows[0]).pair, "reject", "Ada")
    lines = list(worth.training_warnings(version, steps=400, batch_pairs=16))
    assert len(lines) == 4
    assert lines[0].startswith(f"only {pairs} pairs to train on")
    assert "all pairs show a single subject" in lines[1]
    assert f"400 steps of 16 pairs show each of them {6400 / pairs:.0f} times" in lines[2]
    assert lines[3].startswith("1 decision of reviewers came after")


def test_looks_at_a_pair_in_english(toy: Toy, capsys: Capture) -> None:
    run(toy.arguments, capsys)
    version = open_version(str(toy.root))
    pairs = len(version.rows_of("train"))
    for steps, said in (
        (1, "1 step of 1 pair shows each of them less than once"),
        (pairs, f"{pairs} steps of 1 pair show each of them once"),
        (2 * pairs, f"{2 * pairs} steps of 1 pair show each of them 2 times"),
    ):
        assert said in list(worth.training_warnings(version, steps=steps, batch_pairs=1))


def test_decisions_wait_until_a_build_takes_them_in(toy: Toy, capsys: Capture) -> None:
    run(toy.arguments, capsys)
    version = open_version(str(toy.root))
    reject, swap, accept = (version.read(row).pair for row in version.rows[:3])
    audit = Audit(version.store)
    assert worth.waiting_decisions(version) == 0
    audit.record(reject, "reject", "Ada")
    audit.record(swap, "swap", "Ada")
    audit.record(accept, "accept", "Ada")
    assert worth.waiting_decisions(version) == 2, "what is accepted changes nothing"
    toy_suite.GENERATOR.calls.clear()
    run(toy.arguments, capsys)
    assert worth.waiting_decisions(open_version(str(toy.root))) == 0
    audit.record(reject, "withdraw", "Ada")
    assert worth.waiting_decisions(open_version(str(toy.root))) == 1


def test_inspect_is_a_table(toy: Toy, capsys: Capture) -> None:
    run(toy.arguments, capsys)
    code, out, _ = run(["inspect", str(toy.root)], capsys)
    version = open_version(str(toy.root))
    lines = out.splitlines()
    assert code == 0 and len(lines) < 40
    head = lines.index("subject  class   pairs")
    shown = {line.split()[0]: line.split() for line in lines[head + 1 : head + 4]}
    assert {name: cells[1] for name, cells in shown.items()} == {
        one["id"]: one["class_name"] for one in version.manifest["subjects"]
    }
    (stage,) = [line for line in lines if line.startswith("generate ")]
    assert stage.split()[2] == str(version.manifest["stages"]["generate"]["records"])
