"""The review page: nothing of a blind pair tells its winner, no decision is lost or misread."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from small_root import small_version
from studio_client import Client

from focusdpo.data_schemas.pairs import Pair
from focusdpo.pipeline.audit import Audit, Ruling
from focusdpo.pipeline.complexity import complexity_map
from focusdpo.pipeline.shard import ShardConfig, write_shards
from focusdpo.store.artefacts import Store
from focusdpo.store.manifests import PartitionRow
from focusdpo.store.versions import open_version, publish
from focusdpo.studio.review_queue import Filter, Queue, blind_decision, winner_side
from focusdpo.studio.version_reading import Dataset

ADA = "/review/queue?reviewer=Ada"


@pytest.fixture
def studio(tmp_path: Path) -> Client:
    small_version(tmp_path / "data", scenes=6)
    return Client(tmp_path / "data")


def audit(studio: Client) -> Audit:
    return Audit(Store.open(studio.root))


def queue_of(studio: Client) -> Queue:
    store = Store.open(studio.root)
    return Queue(Dataset(store, open_version(store).id))


def decide(studio: Client, pair: str, decision: str, reviewer: str = "Ada", **more: object):
    values = {"reviewer": reviewer, "pair": pair, "decision": decision, **more}
    return studio.post("/review/decide", json=values)


def listed(studio: Client, query: str = "", reviewer: str = "Ada") -> list[str]:
    told = studio.get(f"/review/queue?reviewer={reviewer}&{query}").json()
    return [one["id"] for one in told["pairs"]]


def built_again(studio: Client) -> None:
    """What the next build makes of the reviews, without its models."""
    store = Store.open(studio.root)
    version = open_version(store)
    queue = queue_of(studio)
    pairs = [queue.pair(f"pair{at}") for at in range(6)]
    kept, changed = Ruling.of(Audit(store).reviews()).apply(pairs)
    keys = {
        pair.partition: key for key in store.keys("pair") for pair in store.read("pair", key, Pair)
    }
    partitions = [
        PartitionRow(partition=one.partition, subject_ids=one.subject_ids,
                     key=keys[one.partition], samples="s", pairs=1, rejects={})
        for one in pairs
    ]  # fmt: skip
    rows = write_shards(
        store, kept, complexity_map, ShardConfig(max_pairs=4), previous=version.rows
    )
    publish(
        store, rows, subjects=version.subjects(),
        artefacts=[("pair", key) for key in keys.values()],
        config=version.manifest["config"], rejects={}, partitions=partitions, reviewed=changed,
    )  # fmt: skip


def test_least_certain_come_first_and_what_is_decided_leaves(studio: Client) -> None:
    assert listed(studio) == [f"pair{at}" for at in range(6)], "their margins rise"
    assert listed(studio, "order=certain")[0] == "pair5"
    told = decide(studio, "pair2", "accept").json()
    assert told["count"] == {"decided": 1, "total": 6} and told["mine"] == "accept"
    assert "pair2" not in listed(studio) and listed(studio, "show=mine") == ["pair2"]
    assert len(listed(studio, reviewer="Grace")) == 6
    decide(studio, "pair2", "reject", "Grace")
    assert listed(studio, "show=disputed") == ["pair2"]
    assert listed(studio, "source=rank") == [] and len(listed(studio, "subject=s1")) == 5
    assert listed(studio, "subject=nobody") == []


@pytest.mark.parametrize("query", ["show=x", "order=x", "source=x"])
def test_unknown_filters_are_refused(studio: Client, query: str) -> None:
    assert studio.get(f"{ADA}&{query}").status_code == 400


def test_decisions_are_in_the_audit_before_the_answer(studio: Client) -> None:
    decide(studio, "pair0", "swap", reason="the loser has the right ears")
    decide(studio, "pair1", "reject")
    decide(studio, "pair1", "accept")
    found = audit(studio).reviews()
    assert [(one.pair_id, one.decision) for one in found] == [
        ("pair0", "swap"), ("pair1", "reject"), ("pair1", "accept"),
    ]  # fmt: skip
    assert found[0].reason == "the loser has the right ears" and not found[0].blind
    history = studio.get("/review/pairs/pair1?reviewer=Ada").json()["history"]
    assert [one["decision"] for one in history] == ["reject", "accept"]


def test_undo_goes_back_step_by_step_and_stays_in_the_audit(studio: Client) -> None:
    decide(studio, "pair0", "reject")
    decide(studio, "pair0", "accept")
    assert decide(studio, "pair0", "undo").json()["mine"] == "reject"
    first = decide(studio, "pair1", "swap") and decide(studio, "pair1", "undo").json()
    assert first["mine"] is None
    again = decide(studio, "pair1", "undo")
    assert again.status_code == 400 and "no decision of yours" in again.json()["error"]
    assert decide(studio, "pair0", "undo", "Grace").status_code == 400
    assert len(audit(studio).reviews()) == 5


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"pair": "pair0", "decision": "maybe", "reviewer": "Ada"}, "expected one of accept"),
        ({"pair": "pair0", "decision": "left", "reviewer": "Ada"}, "expected one of accept"),
        ({"pair": "pair0", "decision": "swap", "reviewer": "Ada", "blind": True}, "left, right or"),
        ({"pair": "pair0", "decision": "accept", "reviewer": "  "}, "printable"),
        ({"pair": "pair0", "decision": "accept", "reviewer": "x" * 10_000}, "printable"),
        ({"pair": "pair0", "decision": "accept", "reviewer": "a\u0007"}, "printable"),
        ({"pair": "../pair0", "decision": "accept", "reviewer": "Ada"}, "not in the newest"),
        ({"pair": "pair0", "decision": "accept", "reviewer": "Ada", "reason": "x" * 10_000}, "say"),
        ({"pair": ["pair0"], "decision": "accept", "reviewer": "Ada"}, "pair: expected a text"),
        ([1], "no JSON object"),
    ],
)
def test_bad_decisions_are_refused_and_nothing_is_written(
    studio: Client, values: object, said: str
) -> None:
    answer = studio.post("/review/decide", json=values)
    assert answer.status_code == 400 and said in answer.json()["error"]
    assert audit(studio).reviews() == []


def test_markup_in_names_and_reasons_is_shown_as_text(studio: Client) -> None:
    evil = "<script>alert(1)</script>"
    assert decide(studio, "pair0", "reject", evil, reason=evil).status_code == 200
    page = studio.http.get("/review", params={"reviewer": evil, "subject": '"><b>'}).text
    assert evil not in page and '"><b>' not in page and "&lt;script&gt;" in page


def test_a_blind_pair_tells_nothing_of_its_winner(studio: Client) -> None:
    told = studio.get("/review/pairs/pair0?reviewer=Ada&mode=blind").json()
    assert set(told) == {"id", "prompt", "subjects", "left", "right", "mine"}
    assert "win" not in json.dumps(told) and "lose" not in json.dumps(told)
    assert "left.png" in told["left"] and "right.png" in told["right"]
    row = studio.get("/review/queue?reviewer=Ada&mode=blind").json()
    assert set(row["pairs"][0]) == {"id", "decided"}
    assert set(row["agreement"]) == {"decisions", "pairs"}


def test_blind_sides_are_even_and_the_same_at_each_look(studio: Client) -> None:
    queue = queue_of(studio)
    pair = queue.pair("pair0")
    sides = Counter(winner_side(f"reviewer {at}", pair) for at in range(400))
    assert 150 < sides["left"] < 250
    for reviewer in ("Ada", "Grace", "Edsger", "Barbara"):
        side = winner_side(reviewer, pair)
        assert winner_side(reviewer, queue.pair("pair0")) == side
        other = {"left": "right", "right": "left"}[side]
        query = f"?reviewer={reviewer}"
        shown = {
            name: studio.get(f"/review/pairs/pair0/{name}.png{query}").content
            for name in ("left", "right", "win", "lose")
        }
        assert shown[side] == shown["win"] and shown[other] == shown["lose"]
        assert blind_decision(side, reviewer, pair) == "accept"
        assert blind_decision(other, reviewer, pair) == "swap"
        assert blind_decision("neither", reviewer, pair) == "reject"
        answer = decide(studio, "pair0", other, reviewer, blind=True).json()
        assert answer["mine"] == other
    assert {one.decision for one in audit(studio).reviews()} == {"swap"}
    assert all(one.blind for one in audit(studio).reviews())


def test_home_tells_of_decisions_that_no_build_has_taken_in(studio: Client) -> None:
    for pair, decision in (("pair0", "reject"), ("pair1", "accept"), ("pair2", "swap")):
        decide(studio, pair, decision)
    assert "2 decisions not in the dataset yet: build again" in studio.get("/").text
    decide(studio, "pair2", "undo")
    assert "1 decision not in the dataset yet: build again" in studio.get("/").text
    decide(studio, "pair2", "swap")
    built_again(studio)
    again = Client(studio.root)  # what it knows of the newest version is a second old
    assert "not in the dataset yet" not in again.get("/").text
    decide(again, "pair0", "accept")
    assert "1 decision not in the dataset yet" in again.get("/").text


def test_after_a_build_pairs_are_shown_and_decided_as_they_were_built(studio: Client) -> None:
    decide(studio, "pair0", "reject")
    decide(studio, "pair1", "swap")
    before = {at: studio.get(f"/review/pairs/pair{at}?reviewer=Ada").json() for at in (0, 1)}
    built_again(studio)
    version = open_version(studio.root)
    assert "pair1-swapped" in version.ids() and "pair0" not in version.ids()
    again = Client(studio.root)
    assert len(listed(again, "show=all")) == 6 and sorted(listed(again, "show=mine")) == [
        "pair0", "pair1",
    ]  # fmt: skip
    for at in (0, 1):
        told = again.get(f"/review/pairs/pair{at}?reviewer=Ada").json()
        assert {**told, "history": []} == {**before[at], "history": []}
    assert decide(again, "pair0", "undo").json()["mine"] is None
    decide(again, "pair1", "accept")
    assert not Ruling.of(audit(studio).reviews()).changes


def test_items_know_what_others_say(studio: Client) -> None:
    decide(studio, "pair0", "accept", "Ada")
    decide(studio, "pair0", "accept", "Grace")
    queue = queue_of(studio)
    items, matching, _ = queue.items(audit(studio).reviews(), "Ada", Filter(show="all"), 3)
    assert len(items) == 3 and matching == 6
    (one,) = [item for item in items if item.pair_id == "pair0"]
    assert (one.mine, one.others, one.verdict) == ("accept", 1, "accepted")


def test_without_a_version_the_page_says_what_to_do(tmp_path: Path) -> None:
    answer = Client(tmp_path / "new").page("/review")
    assert answer.status_code == 404 and "dataset" in answer.text


def decide_all(studio: Client, decision: str, matching: int, query: str = ""):
    values = {"reviewer": "Ada", "decision": decision, "matching": matching}
    return studio.post(f"/review/decide-all?{query}", json=values)


def standing_of(studio: Client) -> dict[str, str]:
    """Pair -> Ada's decision that counts."""
    told = studio.get(f"{ADA}&show=mine").json()
    return {one["id"]: one["mine"] for one in told["pairs"]}


def test_one_undo_takes_a_bulk_back_and_nothing_else(studio: Client) -> None:
    first, *rest = listed(studio)
    decide(studio, first, "swap")
    answer = decide_all(studio, "reject", len(rest), "show=open")
    assert answer.status_code == 200 and answer.json()["decided"] == len(rest) == 5
    assert standing_of(studio) == {first: "swap"} | dict.fromkeys(rest, "reject")
    decide(studio, rest[0], "accept")
    undone = decide(studio, rest[1], "undo").json()
    assert undone["decided"] == 4, "what was decided anew since is no longer the bulk's"
    assert standing_of(studio) == {first: "swap", rest[0]: "accept"}
    decide(studio, rest[0], "undo")
    assert standing_of(studio) == {first: "swap", rest[0]: "reject"}
    assert len(audit(studio).reviews()) == 1 + 5 + 1 + 4 + 1, "and all of it stays in the audit"


def test_a_bulk_is_what_the_filter_lets_through_as_it_was_seen(studio: Client) -> None:
    queue = queue_of(studio)
    margins = {name: queue.pair(name).margin for name in listed(studio)}
    middle = sorted(margins.values())[2]
    low = [name for name, margin in margins.items() if margin <= middle]
    query = f"low=-1&high={middle}"
    assert sorted(listed(studio, query)) == sorted(low) and 0 < len(low) < 6
    answer = decide_all(studio, "accept", len(low), query)
    assert answer.json()["decided"] == len(low)
    assert standing_of(studio) == dict.fromkeys(low, "accept")
    before = len(audit(studio).reviews())
    for decision, matching, asked in (
        ("reject", len(low), query),  # decided meanwhile: nothing is open there
        ("reject", 0, query),
        ("swap", 6, "show=all"),
        ("reject", 5, "show=all"),
        ("reject", 6, "show=all&low=x"),
    ):
        assert decide_all(studio, decision, matching, asked).status_code == 400
    assert studio.http.post("/review/decide-all", json={}).status_code == 403
    assert len(audit(studio).reviews()) == before
