"""A build honours reviews: without a model, with a word for each change."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import toy_suite
from plain_build import execute, prepare
from toy_root import Toy

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.pairs import Decision
from focusdpo.flows import cli
from focusdpo.flows.build import changes as dataset_texts
from focusdpo.flows.build.explain import explain
from focusdpo.flows.build.inspection import pair_lineage
from focusdpo.flows.build.outcome import BuildResult
from focusdpo.flows.config import BuildRun
from focusdpo.flows.settings import resolve
from focusdpo.pipeline.audit import Audit, is_swapped, original_id, swapped
from focusdpo.store.artefacts import Store
from focusdpo.store.manifests import partitions_of, reviewed_of
from focusdpo.store.versions import DatasetVersion, open_version


def build(toy: Toy) -> BuildResult:
    toy_suite.GENERATOR.calls.clear()
    return execute(prepare(resolve(BuildRun, toy.tree())))


def latest(toy: Toy) -> DatasetVersion:
    return open_version(str(toy.root))


def decide(toy: Toy, decision: Decision, ids: Sequence[str], reviewer: str = "Ada") -> None:
    """Decide about pairs as they were built, whatever the newest version has made of them."""
    store = Store.open(toy.root)
    audit = Audit(store)
    for name in ids:
        audit.record(BUILT[name], decision, reviewer)


BUILT: dict = {}


@pytest.fixture
def ids(built: Toy) -> list[str]:
    toy_suite.GENERATOR.calls.clear()
    version = latest(built)
    BUILT.clear()
    BUILT.update({row.pair_id: version.read(row).pair for row in version.rows})
    assert len(BUILT) > 4
    return sorted(BUILT)


def test_reviews_alone_make_a_version_and_run_no_model(toy: Toy, ids: list[str]) -> None:
    first = latest(toy)
    files = toy.files("shards") | toy.files("stages")
    decide(toy, "reject", ids[:2])
    decide(toy, "swap", ids[2:3])
    decide(toy, "accept", ids[3:4])
    result = build(toy)
    second = latest(toy)
    assert result.new and result.made == {} and not toy_suite.GENERATOR.calls
    assert second.id != first.id and second.manifest["parent"] == first.id
    assert {row.pair_id for row in second.rows} == {f"{ids[2]}-swapped", *ids[3:]}
    after = toy.files("shards") | toy.files("stages")
    assert files.items() <= after.items(), "what is finished stays as it is"
    assert second.manifest["rejects"]["review: rejected"] == 2
    assert second.manifest["reviews"] == {"rejected": 2, "swapped": 1}
    assert {one.pair_id: one.verdict for one in reviewed_of(second.store, second.id)} == {
        ids[0]: "rejected", ids[1]: "rejected", ids[2]: "swapped",
    }  # fmt: skip
    assert sum(one.pairs for one in partitions_of(second.store, second.id)) == len(second.rows)
    again = build(toy)
    assert not again.new and again.version == second.id


def test_a_swapped_sample_holds_the_exchanged_pair(toy: Toy, ids: list[str]) -> None:
    before = latest(toy)
    decide(toy, "swap", ids)
    build(toy)
    after = {original_id(row.pair_id): row for row in latest(toy).rows}
    assert all(is_swapped(row.pair_id) for row in after.values())
    for row in before.rows:
        old, new = before.read(row), latest(toy).read(after[row.pair_id])
        np.testing.assert_array_equal(new.images.win, old.images.lose)
        np.testing.assert_array_equal(new.images.lose, old.images.win)
        np.testing.assert_array_equal(new.images.prior, old.images.prior)
        np.testing.assert_array_equal(new.images.complexity, old.images.lose_complexity)
        assert new.pair == swapped(old.pair) and new.split == old.split
        assert after[row.pair_id].margin == -row.margin
        told = pair_lineage(str(toy.root), "latest", after[row.pair_id].pair_id)
        assert told["pair"]["win_image"] == old.pair.lose_image


def test_a_decision_taken_back_brings_the_pair_back(toy: Toy, ids: list[str]) -> None:
    first = {row.pair_id: row.digest for row in latest(toy).rows}
    decide(toy, "reject", ids[:1])
    decide(toy, "swap", ids[1:2])
    build(toy)
    decide(toy, "withdraw", ids[:2])
    result = build(toy)
    assert result.made == {}
    assert {row.pair_id: row.digest for row in latest(toy).rows} == first
    assert "review: rejected" not in latest(toy).manifest["rejects"]
    assert reviewed_of(latest(toy).store, latest(toy).id) == []


def test_a_dispute_leaves_the_pair_out_until_it_is_settled(toy: Toy, ids: list[str]) -> None:
    decide(toy, "accept", ids[:1], "Ada")
    decide(toy, "swap", ids[:1], "Grace")
    build(toy)
    assert ids[0] not in {original_id(row.pair_id) for row in latest(toy).rows}
    assert latest(toy).manifest["rejects"]["review: contested"] == 1
    decide(toy, "swap", ids[:1], "Edsger")
    build(toy)
    assert f"{ids[0]}-swapped" in {row.pair_id for row in latest(toy).rows}


def test_plan_and_diff_tell_what_reviews_change(toy: Toy, ids: list[str]) -> None:
    first = latest(toy).id
    decide(toy, "reject", ids[:2])
    decide(toy, "swap", ids[2:3])
    prepared = prepare(resolve(BuildRun, toy.tree()))
    told = explain(prepared.builder)
    assert prepared.settled is None and told.causes == []
    assert told.leaving == [
        "review: 2 pairs left out of the index (2 rejected)",
        "review: 1 pair with winner and loser exchanged, written to new shards",
    ]
    build(toy)
    assert explain(prepare(resolve(BuildRun, toy.tree())).builder).leaving == []
    diff = dataset_texts.difference(str(toy.root), first, "latest")
    assert diff.added == {"review: swapped": 1}
    assert diff.removed == {"review: rejected": 2, "review: swapped": 1}
    decide(toy, "withdraw", ids[:1])
    told = explain(prepare(resolve(BuildRun, toy.tree())).builder)
    assert told.leaving == ["review: 1 pair as built again, decisions were withdrawn or overruled"]
    second = latest(toy).id
    build(toy)
    diff = dataset_texts.difference(str(toy.root), second, "latest")
    assert diff.added == {"review: withdrawn": 1} and diff.removed == {}


def test_acceptance_alone_changes_nothing(toy: Toy, ids: list[str]) -> None:
    version = latest(toy).id
    decide(toy, "accept", ids)
    prepared = prepare(resolve(BuildRun, toy.tree()))
    assert prepared.settled is not None and prepared.settled["id"] == version
    assert not build(toy).new


def test_a_review_during_a_build_counts_or_makes_the_next_build_count(
    toy: Toy, ids: list[str]
) -> None:
    """What the builder asked for is noted as it was published, not as it was planned."""
    decide(toy, "reject", ids[:1])
    prepared = prepare(resolve(BuildRun, toy.tree()))
    assert prepared.settled is None
    decide(toy, "reject", ids[1:2])
    execute(prepared)
    assert not {*ids[:2]} & {row.pair_id for row in latest(toy).rows}
    assert prepare(resolve(BuildRun, toy.tree())).settled is not None
    decide(toy, "withdraw", ids[1:2])
    assert prepare(resolve(BuildRun, toy.tree())).settled is None


def test_when_reviews_reject_everything_the_error_says_so(toy: Toy, ids: list[str]) -> None:
    version = latest(toy).id
    decide(toy, "reject", ids)
    with pytest.raises(UserError, match=r"review: rejected"):
        build(toy)
    assert latest(toy).id == version


def run_cli(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    told = capsys.readouterr()
    return int(ended.value.code or 0), told.out, told.err


def test_the_commands(
    toy: Toy, ids: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--root", str(toy.root))
    assert run_cli(capsys, "review", "list", *where)[1].startswith("no decision yet")
    decide(toy, "reject", ids[:2], "Ada")
    decide(toy, "reject", ids[:1], "Grace")
    decide(toy, "accept", ids[1:2], "=HYPERLINK(1)")
    decide(toy, "withdraw", ids[:1], "Grace")
    code, out, _ = run_cli(capsys, "review", "stats", *where, "--json")
    told = json.loads(out.splitlines()[-1])
    assert code == 0 and (told["decisions"], told["pairs"], told["several"]) == (5, 2, 1)
    assert "1 contested, 1 rejected" in out
    _, out, _ = run_cli(capsys, "review", "list", *where, "--reviewer", "Grace", "--json")
    listed = json.loads(out.splitlines()[-1])["reviews"]
    assert [(one["decision"], one["counts"]) for one in listed] == [
        ("reject", False), ("withdraw", False),
    ]  # fmt: skip
    table = tmp_path / "audit.csv"
    assert run_cli(capsys, "review", "export", *where, "--out", str(table))[0] == 0
    text = table.read_text()
    assert len(text.splitlines()) == 6 and "'=HYPERLINK(1)" in text
    lines = tmp_path / "audit.jsonl"
    run_cli(capsys, "review", "export", *where, "--out", str(lines))
    assert [json.loads(line)["decision"] for line in lines.read_text().splitlines()].count(
        "reject"
    ) == 3
    code, _, err = run_cli(capsys, "review", "export", *where, "--out", str(tmp_path / "a.xls"))
    assert code == 2 and ".csv or .jsonl" in err
