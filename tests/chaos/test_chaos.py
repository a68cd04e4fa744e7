"""The harness itself, and a few faults of each kind: the long runs are test_chaos_long.py and
`python -m tests.chaos`."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from s3_server import SECRET

from focusdpo.store.addresses import header
from focusdpo.store.keys import sealed, unsealed

from .__main__ import LARGE, SMALL_KINDS, arguments, main
from .bucket import BUCKET, KINDS, PREFIX, a_bucket, draw_fault
from .command import Broken, jump_clock
from .damage import PLACES, Damage, draw_damage
from .faults import NAMED, Call, draw_strikes
from .jobs import Build, digest_of
from .processes import ROOT
from .reading import Reader
from .server import Network
from .summary import WORDS, short_table
from .trials import Log, Outcome, differences, follow, note_twice
from .wounds import damage_file

pytestmark = pytest.mark.timeout(1200)


def test_kills_lose_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = tmp_path / "chaos.json"
    given = ["--kills", "1", "--fresh", "0", "--work", str(tmp_path / "w"), "--json", str(found)]
    assert main(given) == 0, capsys.readouterr().out
    told = json.loads(found.read_text())
    struck = [kind for one in told["trials"] for kind in one["kinds"]]
    moments = [moment for one in told["trials"] for moment in one["moments"]]
    assert len(struck) >= 1 and len(moments) == len(struck)
    assert not any(one["lost"] or one["twice"] or one["half_visible"] for one in told["trials"])
    assert "computed twice: 0." in capsys.readouterr().out
    # The same call goes on behind them: there is nothing left to do.
    again = [*given[:5], str(tmp_path / "again"), *given[6:]]
    assert main(again) == 0
    assert json.loads(found.read_text())["trials"] == told["trials"]


def test_kinds_of_trouble_with_a_bucket_come_in_turn() -> None:
    drawn = [draw_fault(random.Random(number), number, 30) for number in range(14)]
    assert [one.kind for one in drawn] == [*KINDS, *KINDS]
    assert len({one.objects for one in drawn}) > 5


def test_what_is_wrong_in_a_bucket_is_told(tmp_path: Path) -> None:
    with a_bucket(tmp_path) as job:
        job.lay("new")
        job.server.put(BUCKET, f"{PREFIX}/LATEST", b"0123\n")
        job.server.put(BUCKET, f"{PREFIX}/dataset.json", header())
        assert "no such version" in str(job.newest())
        assert job.secrets() == []
        job.server.put(BUCKET, f"{PREFIX}/note", SECRET.encode())
        assert job.secrets() == ["note"]
        assert job.state().keys() == {"LATEST", "dataset.json"}


def test_a_seed_draws_the_same_faults() -> None:
    calls = ["stages/generate/aa/aa.tar", "shards/a.tar", "LATEST"] * 9

    def drawn(seed: str) -> list[str]:
        random_ = random.Random(seed)
        return [str(one) for one in draw_strikes(random_, "build-dataset", calls, 9)]

    assert drawn("0/1") == drawn("0/1")
    assert len({tuple(drawn(f"0/{number}")) for number in range(40)}) > 30


def test_named_moments_are_calls_of_an_undisturbed_run() -> None:
    calls = [".tmp/a", "versions/0a/manifest.json", ".tmp/b", "LATEST"]
    drawn = [draw_strikes(random.Random(seed), "build-dataset", calls, 9)[0] for seed in range(400)]
    named = {str(one) for one in drawn if isinstance(one, Call) and one.name != "call"}
    assert {
        "before: the version's manifest (call 2)",
        "after: the version's manifest (call 3)",
        "before: LATEST (call 4)",
    } <= named
    assert NAMED.keys() == {"build-dataset", "train", "evaluate", "retrain"}


def test_what_is_lost_is_told() -> None:
    assert differences({"a": "1", "c": "1"}, {"a": "2", "b": "1"}) == [
        "a: differs",
        "b: missing",
        "c: too much",
    ]


def test_what_is_computed_again_is_told(tmp_path: Path) -> None:
    log = Log(tmp_path / "log")
    keys = ("done", "begun", "begun", "new")
    log.path.write_text("".join(json.dumps({"computes": "x", "key": k}) + "\n" for k in keys))
    outcome = Outcome("build-dataset", 0, "new", "kill")
    note_twice(outcome, log, 2, frozenset({"done"}))
    assert outcome.twice == []
    note_twice(outcome, log, 0, frozenset({"done"}))
    assert outcome.twice == ["finished before: done", "twice in one run: begun"]
    assert not outcome.whole


def test_times_do_not_count(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    digests = []
    for seconds, steps in ((1, 5), (2, 5), (1, 6)):
        file.write_text(json.dumps({"a": [{"seconds": seconds, "steps": steps}]}))
        digests.append(digest_of(file))
    assert digests[0] == digests[1] != digests[2]


def test_a_reader_notices_half_a_version(tmp_path: Path) -> None:
    from small_root import small_version

    reader = Reader(tmp_path / "root")
    reader.look()
    assert reader.wrong == []
    version = small_version(tmp_path / "root")
    reader.look()
    assert reader.wrong == []
    (tmp_path / "root" / "versions" / version.id / "index.parquet").unlink()
    reader.look()
    assert len(reader.wrong) == 1 and "index.parquet: damaged (missing)" in reader.wrong[0]


@pytest.mark.parametrize("way", ["truncated", "flipped", "emptied", "deleted"])
def test_damage_is_done(tmp_path: Path, way: str) -> None:
    file = tmp_path / "LATEST"
    file.write_bytes(b"0123456789")
    Damage("LATEST", "LATEST", way, 0.5, False).do(tmp_path)
    wanted = {"truncated": b"01234", "flipped": b"01234`6789", "emptied": b"", "deleted": None}
    assert (file.read_bytes() if file.exists() else None) == wanted[way]


def test_damage_has_a_place_for_every_file_that_a_version_has(tmp_path: Path) -> None:
    from small_root import small_version

    small_version(tmp_path / "root")
    (tmp_path / "root" / "versions" / "x").mkdir()
    (tmp_path / "root" / "versions" / "x" / "partitions.parquet").touch()
    places = {draw_damage(random.Random(seed), tmp_path / "root").place for seed in range(200)}
    assert places == set(PLACES)


def test_messages_are_followed(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    build = Build(tmp_path)
    outcome = Outcome("build-dataset", 0, "new", "damage")
    folder = build.out / "versions" / "0a"
    folder.mkdir(parents=True)
    said = f"error: {folder}/manifest.json: damaged (...); remove {folder} and build again"
    assert follow(build, said, outcome) and not folder.exists()
    folder.mkdir()
    said = f"error: {folder}/lineage.parquet: no table (x); build again, or remove the version"
    assert follow(build, said, outcome) and not folder.exists()
    header = build.out / "dataset.json"
    said = f'error: {header}: damaged (x); write {{"kind": 1}} into it if this version made it'
    assert follow(build, said, outcome) and header.read_text() == '{"kind": 1}\n'
    assert outcome.advice == ["remove root/versions/0a"] * 2 + ["write dataset.json"]
    assert not follow(build, "error: no idea", outcome)
    # Never outside the trial's own folder, whatever a message says.
    assert not follow(build, "remove the folder /usr and go on", outcome)


def test_a_network_can_be_cut_and_fall_silent() -> None:
    server = socket.create_server(("127.0.0.1", 0))

    def echo() -> None:
        while True:
            try:
                one, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=lambda one=one: one.sendall(one.recv(10)), daemon=True).start()

    threading.Thread(target=echo, daemon=True).start()
    network = Network(server.getsockname()[1])

    def ask(seconds: float) -> bytes:
        with socket.create_connection(("127.0.0.1", network.port), timeout=seconds) as one:
            one.sendall(b"hello")
            return one.recv(10)

    assert ask(30) == b"hello"
    network.cut()
    with pytest.raises(OSError):
        if ask(30) == b"":
            raise ConnectionResetError
    network.mend()
    network.fall_silent()
    with pytest.raises(TimeoutError):
        ask(0.5)
    network.mend()
    assert ask(30) == b"hello"
    network.close()
    server.close()


def test_make_chaos_asks_for_500_faults() -> None:
    """What is missed, because a command ended before, has to be made up for by the rest."""
    lines = (ROOT / "Makefile").read_text().replace("\\\n", " ").splitlines()
    (command,) = [line for line in lines if "tests.chaos" in line]
    options = arguments(command.partition("tests.chaos")[2].split())
    counts = {name: getattr(options, name.replace("-", "_")) for name in (*SMALL_KINDS, *LARGE)}
    assert all(counts.values()) and sum(counts.values()) >= 550, counts


def test_each_kind_of_trial_has_a_row(tmp_path: Path) -> None:
    kinds = (*SMALL_KINDS, "kill", "damage", "disk", "prefect", "bucket")
    found = [Outcome("train", 0, "", kind, kinds=["x"], lost=["y"]) for kind in kinds]
    table = short_table(found).splitlines()
    assert len(table) == 2 + len({WORDS[kind] for kind in kinds}) + 1  # disks, large and small
    assert "| `train` | killed | 1 | 1 | 1 | 0 | 0 | 0 |" in table


def test_a_flipped_bit_changes_what_is_said(tmp_path: Path) -> None:
    """One in white space, which nobody reads, is no damage; every other one is noticed."""
    file = tmp_path / "run.json"
    for seed in range(60):
        file.write_bytes(sealed({"a": 1}))
        damage_file(file, "one flipped bit", random.Random(seed))
        with pytest.raises(ValueError):
            unsealed(file.read_bytes())


def test_a_part_is_broken_and_a_clock_jumps(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Broken(SimpleNamespace(embed=lambda n: [np.ones(n, np.float32)], side=3), "nan")
    assert broken.side == 3 and np.isnan(broken.embed(2)[0]).all()
    black = Broken(SimpleNamespace(paint=lambda: [np.full((2, 2, 3), 9, np.uint8)]), "black")
    assert not black.paint()[0].any()
    monkeypatch.setattr(time, "time", time.time)  # put back afterwards
    monkeypatch.setattr(time, "time_ns", time.time_ns)
    before = time.time()
    jump_clock(3600.0, 2)
    assert [round((time.time() - before) / 3600) for _ in range(4)] == [0, 0, 1, 1]
