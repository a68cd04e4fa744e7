"""What a build and a training say about a dataset: what it is worth, and what would help."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import pytest
import toy_suite
from in_process import run
from plain_build import execute, prepare
from toy_root import Toy

from focusdpo.data_schemas.images import decode_mask, decode_png
from focusdpo.data_schemas.pairs import Reason
from focusdpo.data_schemas.shards import IndexRow
from focusdpo.flows.build import worth
from focusdpo.flows.build.explain import explain
from focusdpo.flows.config import BuildRun
from focusdpo.flows.settings import resolve
from focusdpo.pipeline.audit import Audit
from focusdpo.pipeline.parts import Image, Mask, ReferenceImage
from focusdpo.store.samples import read_fields
from focusdpo.store.versions import DatasetVersion, open_version

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


def test_what_was_refused_or_kept_out_is_told_however_rare() -> None:
    rejects = {"surplus": 9, "weak_winner": 8, "small_margin": 7, "near_duplicate": 2,
               "unsafe_picture": 1}  # fmt: skip
    told = worth.Worth(pairs=0, train_pairs=0, by_subject={}, by_num_subjects={}, rejects=rejects)
    lines = list(worth.worth_lines(told))
    assert lines[-1].startswith("  1 rejected, unsafe_picture: the filter of unsafe pictures")
    assert "models.safety.threshold" in lines[-1] and len(lines) == 4
    assert "keep_in_validation" in worth.remedy("near_duplicate")


class Shy:
    """Leaves every second hole empty, as a generator may that is asked for words alone."""

    fingerprint = "toy"

    def inpaint(
        self,
        images: Sequence[Image],
        masks: Sequence[Mask],
        prompts: Sequence[str],
        references: Sequence[Sequence[ReferenceImage]],
        seeds: Sequence[int],
        *,
        guidance: float | None = None,
    ) -> list[Image]:
        new = toy_suite.GENERATOR.inpaint(images, masks, prompts, references, seeds)
        for picture, mask, seed in zip(new, masks, seeds, strict=True):
            if seed % 2:
                picture[mask] = 110
        return list(new)


def test_a_repaint_that_left_a_hole_empty_makes_no_pair(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(toy_suite.PARTS, "inpainter", Shy())
    loose = {"clip_t_tolerance": 2.0, "max_disrupt_per_scene": 64, "min_drop": 0.0}
    loose["max_failure_per_scene"] = 0

    def pairs_of(**score: bool) -> DatasetVersion:
        result = execute(prepare(resolve(BuildRun, toy.tree(pair=loose, score=score))))
        return open_version(str(toy.root), result.version)

    def is_empty(version: DatasetVersion, row: IndexRow) -> bool:
        fields = read_fields(version.store, row)
        lose = decode_png(fields["lose.png"], "lose")
        masks = [
            decode_mask(fields[f"mask{place}.png"], "mask") for place in range(row.num_subjects)
        ]
        return any((lose[mask] == 110).all() for mask in masks)

    blind, looked = pairs_of(), pairs_of(find_repaints=True)
    empty = {row.pair_id for row in blind.rows if is_empty(blind, row)}
    assert (
        empty
        and {row.pair_id for row in looked.rows} == {row.pair_id for row in blind.rows} - empty
    )
    worth_now = worth.worth_of(looked)
    count = worth_now.rejects["empty_repaint"]
    assert count >= len(empty) and "empty_repaint" not in worth.worth_of(blind).rejects
    share = count / (worth_now.pairs + sum(worth_now.rejects.values()))
    told = f"{count} rejected ({share:.0%} of what was judged), empty_repaint: "
    (line,) = [one for one in worth.worth_lines(worth_now) if told in one]
    assert "models.inpainter.kind=flux-fill" in line
    # A setting that only one of two builds has among a stage's own is explained, too.
    job = prepare(resolve(BuildRun, toy.tree(pair={**loose, "max_failure_per_scene": 1})))
    causes = " ".join(cause.text for cause in explain(job.builder).causes)
    assert "setting segment.extras None -> True" in causes


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
    none = ("--set", "compose.pair_rate=0", "--set", "compose.class_pair_rate=0")
    assert run([*toy.arguments, *none], capsys)[0] == 0
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
