"""Jobs: the command line's commands and errors, one at a time, alive across restarts."""

from __future__ import annotations

import html
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from small_root import small_version
from studio_client import Client

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.build.worth import Worth, next_steps, worth_lines
from focusdpo.flows.config import BuildRun
from focusdpo.flows.console import time_left
from focusdpo.flows.settings import preset_names, resolve
from focusdpo.pipeline.subjects.ingest import IngestConfig, ingest
from focusdpo.sharing.dataset_export import check_licences
from focusdpo.store.artefacts import Store
from focusdpo.store.versions import open_version
from focusdpo.studio.job_files import Job, Jobs, progress_of
from focusdpo.studio.job_forms import FORMS, OWN, in_fields, order

PYTHON = (sys.executable, "-c")
SLEEPS = "import time\nprint('begun', flush=True)\ntime.sleep(600)"


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path / "jobs")


def start(jobs: Jobs, code: str, root: str = "here", kind: str = "build") -> Job:
    return jobs.start(kind, f"a {kind}", root, [code], program=PYTHON)


def ended(jobs: Jobs, id: str, seconds: float = 60) -> Job:
    deadline = time.monotonic() + seconds
    while (job := jobs.get(id)).active:
        assert time.monotonic() < deadline, job
        time.sleep(0.05)
    return job


def running(jobs: Jobs, id: str) -> Job:
    deadline = time.monotonic() + 60
    while (job := jobs.get(id)).state == "starting":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return job


def test_what_a_command_says_and_gives_is_kept(jobs: Jobs) -> None:
    code = (
        "import sys\n"
        "sys.stderr.write('reading\\ngenerate: 3/10  loss 0.5\\ngenerate: 10/10\\n')\n"
        "print('for people')\nprint('{\"pairs\": 4}')"
    )
    job = ended(jobs, start(jobs, code).id)
    assert (job.state, job.code, job.result) == ("done", 0, {"pairs": 4})
    assert job.printed == ["for people"]
    assert job.log.startswith("reading")
    assert [(one.phase, one.done, one.total) for one in job.progress] == [("generate", 10, 10)]


def test_a_job_does_not_know_the_studios_token(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOCUSDPO_STUDIO_TOKEN", "a secret of many letters")
    code = "import os, json; print(json.dumps({'told': 'FOCUSDPO_STUDIO_TOKEN' in os.environ}))"
    assert ended(jobs, start(jobs, code).id).result == {"told": False}


@pytest.mark.parametrize(
    ("code", "state"), [(0, "done"), (3, "incomplete"), (1, "failed"), (2, "failed")]
)
def test_exit_codes(jobs: Jobs, code: int, state: str) -> None:
    assert ended(jobs, start(jobs, f"raise SystemExit({code})").id).state == state


def test_a_command_that_cannot_start_has_failed(jobs: Jobs) -> None:
    job = jobs.start("build", "none", "here", [], program=["/no/such/program"])
    job = ended(jobs, job.id)
    assert job.state == "failed" and "cannot start" in job.log


def test_one_at_a_time_for_a_root(jobs: Jobs) -> None:
    first = start(jobs, SLEEPS)
    with pytest.raises(UserError, match="a job is at work on here: a build"):
        start(jobs, "pass", kind="train")
    assert ended(jobs, start(jobs, "pass", root="elsewhere").id).state == "done"
    running(jobs, first.id)
    jobs.stop(first.id)
    assert ended(jobs, first.id).state == "stopped"
    assert ended(jobs, start(jobs, "pass", kind="train").id).state == "done"
    assert [one.kind for one in jobs.list()] == ["train", "build", "build"]


def test_stop_lets_a_command_end_as_on_a_terminal(jobs: Jobs) -> None:
    code = (
        "import time, sys\n"
        "try:\n    sys.stderr.write('begun\\n'); sys.stderr.flush(); time.sleep(600)\n"
        "except KeyboardInterrupt:\n"
        "    sys.stderr.write('kept what was finished\\n'); sys.exit(130)"
    )
    job = start(jobs, code)
    while "begun" not in jobs.get(job.id).log:
        time.sleep(0.05)
    jobs.stop(job.id)
    job = ended(jobs, job.id)
    assert (job.state, job.code) == ("stopped", 130) and "kept what was finished" in job.log


def test_stop_again_ends_what_does_not_listen(jobs: Jobs) -> None:
    code = (
        "import signal, sys, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "sys.stderr.write('begun\\n'); sys.stderr.flush()\ntime.sleep(600)"
    )
    job = start(jobs, code)
    while "begun" not in jobs.get(job.id).log:
        time.sleep(0.05)
    assert jobs.stop(job.id).state == "stopping"
    time.sleep(0.5)
    assert jobs.get(job.id).state == "stopping"
    jobs.stop(job.id)
    assert ended(jobs, job.id).state == "stopped"


RESTART = """
import sys
from pathlib import Path
from focusdpo.studio.job_files import Jobs
print(Jobs(Path(sys.argv[1])).start("build", "b", "here", [sys.argv[2]],
      program=(sys.executable, "-c")).id)
"""


def test_a_job_outlives_the_studio_that_started_it(jobs: Jobs, tmp_path: Path) -> None:
    import subprocess

    command = [sys.executable, "-c", RESTART, str(tmp_path / "jobs")]
    go = tmp_path / "go"
    code = (
        f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.05)\n"
        "print('{\"pairs\": 1}')"
    )
    begun = subprocess.run([*command, code], capture_output=True, text=True, check=True)
    id = begun.stdout.strip()
    assert running(jobs, id).state == "running", "that studio is gone, this one sees it"
    with pytest.raises(UserError, match="a job is at work"):
        start(jobs, "pass")
    go.touch()
    assert ended(jobs, id).result == {"pairs": 1}


def test_a_killed_job_is_lost_and_does_not_hold_up_the_next(jobs: Jobs, tmp_path: Path) -> None:
    import json

    job = start(jobs, SLEEPS)
    running(jobs, job.id)
    told = json.loads((tmp_path / "jobs" / job.id / "runner.json").read_text())
    os.killpg(int(told["process"].split("~")[1]), signal.SIGKILL)
    assert ended(jobs, job.id).state == "lost"
    assert ended(jobs, start(jobs, "pass").id).state == "done"


@pytest.mark.parametrize("id", ["..", "../jobs", "nope", "20260101-000000000000-build-zzzzzz", ""])
def test_names_of_jobs_are_no_paths(jobs: Jobs, id: str) -> None:
    with pytest.raises(UserError, match="no such job"):
        jobs.get(id)


def test_progress_is_each_phases_last_count() -> None:
    log = "compose: 1/4\nnot: a count\ncompose: 4/4\ntrain: 7/20  loss 0.69  gap 0.1\nx: 1/2 of it"
    told = progress_of(log)
    assert [(one.phase, one.done, one.total) for one in told] == [
        ("compose", 4, 4),
        ("train", 7, 20),
    ]
    assert told[1].figures == "loss 0.69  gap 0.1" and told[1].share == 0.35


def test_time_left_is_told_at_the_pace_of_the_phase() -> None:
    assert time_left(100.0, 2, 130.0, 12, 42) == "  about 2 min left", "3 s each, 30 to come"
    assert time_left(0.0, 0, 10.0, 10, 30) == "  about 20 s left"
    assert time_left(0.0, 0, 3600.0, 1, 4) == "  about 3.0 h left"
    assert time_left(0.0, 5, 9.0, 5, 9) == time_left(0.0, 0, 9.0, 9, 9) == ""
    (now,) = progress_of("train: 7/20  loss 0.69  about 2 min left")
    assert (now.figures, now.left) == ("loss 0.69", "2 min")
    (now,) = progress_of("generate: 7/20  about 20 s left")
    assert (now.figures, now.left) == ("", "20 s")


def test_what_the_log_says_is_told_in_words(jobs: Jobs) -> None:
    code = (
        "import sys, time\n"
        "say = lambda text: (sys.stderr.write(text + '\\n'), sys.stderr.flush())\n"
        "say('WARNING focusdpo.flows: few pairs'); say('WARNING focusdpo.flows: few pairs')\n"
        "say('generate: 3/10  about 20 s left')\n"
        "time.sleep(600)"
    )
    job = start(jobs, code)
    deadline = time.monotonic() + 60
    while "generate" not in (job := jobs.get(job.id)).log:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert job.words == "Painting candidates: 3 of 10; about 20 s left."
    assert job.warnings == ["few pairs"]
    jobs.stop(job.id)
    ended(jobs, job.id)
    failing = "import sys; sys.stderr.write('error: no room\\n'); sys.exit(2)"
    assert ended(jobs, start(jobs, failing).id).words == "no room"


def test_a_command_s_error_speaks_of_the_form(studio: Client, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        version = open_version(Store.open(studio.root))
        version.manifest["subjects"][0]["licence"] = ""
        check_licences(version, False)
    said = in_fields("share", str(refused.value))
    assert "tick “Export subjects that state no licence" in said
    assert "tell it on the page of each subject and build again" in said
    assert "--" not in said and "`" not in said and "yaml" not in said


def test_what_a_build_came_to_is_told_on_its_page_by_the_forms_fields(studio: Client) -> None:
    worth = Worth(pairs=2, train_pairs=2, by_subject={"a": 1, "b": 1}, by_num_subjects={1: 2},
                  rejects={"too_few_candidates": 7})  # fmt: skip
    lines = [*worth_lines(worth), *next_steps(worth, "data")]
    code = [f"print({line!r})" for line in lines]
    jobs = studio.app.state.studio.jobs
    job = jobs.start("build", "b", str(studio.root), ["; ".join(code)], {}, {}, PYTHON)
    ended(jobs, job.id)
    told = studio.get(f"/jobs/{job.id}/state").json()["printed"]
    assert "  7 rejected, too_few_candidates: raise “Sampled candidates per scene”" in told
    assert any("all pairs show a single subject" in line for line in told)
    assert told[-1].endswith("or look at the pairs first")
    assert not [line for line in told if "generate.candidates" in line or "focusdpo" in line]
    assert html.escape(told[-1], quote=False) in studio.page(f"/jobs/{job.id}").text


def test_pictures_of_a_job_are_shown_while_it_runs(studio: Client, tmp_path: Path) -> None:
    old, out = tmp_path / "data/first.png", tmp_path / "data-runs/a-evaluated/images/base"
    out.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(old)
    os.utime(old, (0, 0))
    jobs = studio.app.state.studio.jobs
    build = jobs.start("build", "b", str(studio.root), [SLEEPS], {}, {}, PYTHON)
    running(jobs, build.id)
    told = studio.get(f"/jobs/{build.id}/state").json()
    assert told["pictures"] == [], "the one that is there is an earlier build's"
    Image.new("RGB", (8, 8)).save(old)
    (address,) = studio.get(f"/jobs/{build.id}/state").json()["pictures"]
    assert studio.get(address).headers["content-type"] == "image/png"
    assert address in studio.page(f"/jobs/{build.id}").text
    jobs.stop(build.id)
    ended(jobs, build.id)
    outputs = {"evaluation": str(tmp_path / "data-runs/a-evaluated")}
    job = jobs.start("evaluate", "e", str(studio.root), ["pass"], outputs, {}, PYTHON)
    ended(jobs, job.id)
    Image.new("RGB", (8, 8)).save(out / "s-0.png")
    Image.new("RGB", (8, 8)).save(out / "s-2.jpg")
    (out / "s-1.png").symlink_to(old)
    exact, small = sorted(studio.get(f"/jobs/{job.id}/state").json()["pictures"])
    assert "base-s-0.png" in exact and "base-s-2.jpg" in small
    assert all(studio.get(address).status_code == 200 for address in (exact, small))
    for name in ("base-s-1.png", "..%2f..%2fdata%2ffirst.png", "first.png"):
        assert studio.get(f"/jobs/{job.id}/pictures/{name}").status_code == 404


def test_a_running_training_shows_its_newest_sheets(studio: Client, tmp_path: Path) -> None:
    run, jobs = tmp_path / "data-runs/one", studio.app.state.studio.jobs
    words = "train: 5/20  loss 0.6  about 3 min left"
    say = f"import sys\nprint('{words}', file=sys.stderr, flush=True)\n"
    outputs = {"run": str(run)}
    job = jobs.start("train", "t", str(studio.root), [say + SLEEPS], outputs, {}, PYTHON)
    running(jobs, job.id)
    assert studio.get(f"/jobs/{job.id}/state").json()["pictures"] == []
    (run / "samples").mkdir(parents=True)
    for step in (250, 500, 750):
        Image.new("RGB", (8, 8)).save(run / f"samples/step-{step:06d}.png")
    deadline = time.monotonic() + 60
    while not (told := studio.get(f"/jobs/{job.id}/state").json())["progress"]:
        assert time.monotonic() < deadline
    assert told["words"].startswith("Training") and told["progress"][0]["left"] == "3 min"
    named = [address.split("/")[-1].split("?")[0] for address in told["pictures"]]
    assert named == ["step-000500.png", "step-000750.png"]
    assert studio.get(told["pictures"][-1]).status_code == 200
    assert 'class="far sheets"' in studio.page(f"/jobs/{job.id}").text
    jobs.stop(job.id)
    ended(jobs, job.id)


def form(**values: str) -> dict[str, str]:
    return {"preset": "pocket", **values}


def test_forms_become_the_commands(tmp_path: Path) -> None:
    made = order("build", form(variants="2", settings="pair.min_drop=0.1\n--set shard.max_pairs=8"),
                 root="data", runs=tmp_path)  # fmt: skip
    assert made.arguments == [
        "-v", "build-dataset", "--root", "data", "--preset", "pocket",
        "--set", "compose.variants=2", "--set", "pair.min_drop=0.1", "--set", "shard.max_pairs=8",
        "--no-prefect", "--json",
    ]  # fmt: skip
    made = order("train", form(name="a", steps="5", objective="dpo"), root="data", runs=tmp_path)
    assert made.arguments[:6] == ["-v", "train", "--root", "data", "--out", str(tmp_path / "a")]
    assert "train.objective.name=dpo" in made.arguments and "train.steps=5" in made.arguments


def test_a_dataset_is_exported_by_its_version(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="build one first"):
        order("share", {}, root="data", runs=tmp_path)
    made = order("share", {"allow_unlicensed": "yes"}, root="data", runs=tmp_path, version="ab12")
    out = str(tmp_path / "dataset-ab12")
    assert made.arguments == [
        "-v", "export", "dataset", "--root", "data", "--version", "ab12", "--out", out,
        "--allow-unlicensed", "--json",
    ]  # fmt: skip
    assert made.outputs == {"export": out}


def test_a_wrong_setting_gets_the_command_lines_words(tmp_path: Path) -> None:
    with pytest.raises(UserError) as ours:
        order("build", form(settings="pair.min_drp=0.1"), root="data", runs=tmp_path)
    with pytest.raises(UserError) as theirs:
        resolve(BuildRun, {"preset": "pocket", "root": "data", "pair": {"min_drp": 0.1}})
    assert str(ours.value) == str(theirs.value) and "did you mean 'min_drop'" in str(ours.value)


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        ("build", {"variants": "two"}, "Scenes per set of subjects: got 'two'"),
        ("build", {"variants": "1; rm -rf /"}, "expected a whole number"),
        ("build", {"settings": "no equals sign"}, "expected section.field=value"),
        ("build", {"settings": "a.b=\x1b[31m"}, "control characters"),
        ("build", {"settings": "x.y=" + "1" * 10_000}, "too long"),
        ("build", {"settings": "a.b=1\n" * 101}, "101 lines"),
        ("build", {"preset": "/etc/passwd"}, "Preset: there is no"),
        ("train", {"name": ""}, "Name of the run"),
        ("train", {"name": "../../x"}, "expected letters"),
        ("train", {"name": "a b; ls"}, "expected letters"),
        ("train", {"name": "-rf"}, "expected letters"),
        ("train", {"name": "taken"}, "is no training run"),
        ("train", {"name": "a", "objective": "magic"}, "expected one of"),
        ("evaluate", {"run": "nobody"}, "train first"),
        ("export", {"run": "../taken"}, "train first"),
        ("erase", {}, "no job is called"),
    ],
)
def test_bad_forms_are_refused(
    tmp_path: Path, kind: str, values: dict[str, str], said: str
) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(UserError, match=said):
        order(kind, form(**values), root="data", runs=tmp_path)


@pytest.fixture
def studio(tmp_path: Path) -> Client:
    small_version(tmp_path / "data")
    return Client(tmp_path / "data")


def test_the_page_keeps_what_was_filled_and_escapes_it(studio: Client) -> None:
    evil = "pair.x=</textarea><script>alert(1)</script>"
    answer = studio.form("/jobs/start/build", variants="3", settings=evil, preset="pocket")
    assert answer.status_code == 400
    assert "pair.x: no such field" in answer.text and 'value="3"' in answer.text
    assert "<script>alert" not in answer.text and "&lt;/textarea&gt;" in answer.text


def test_an_empty_field_says_what_the_preset_has(studio: Client) -> None:
    preset = resolve(BuildRun, {"root": "here"})
    page = studio.page("/jobs").text
    assert f'placeholder="{preset.generate.candidates}, as the preset has it"' in page
    for form in FORMS.values():
        for name in preset_names() if form.has_preset else ():
            assert all(one not in ("", "None", "...") for one in form.preset_values(name).values())
    assert FORMS["train"].preset_values("pocket") != FORMS["train"].preset_values("flux-uno")


def test_a_form_has_what_the_last_job_of_its_kind_had(studio: Client, tmp_path: Path) -> None:
    jobs = Jobs(tmp_path / "data-runs/.studio/jobs")
    for number in ("3", "4"):
        form = {"variants": number, "settings": "compose.pair_rate=1"}
        job = jobs.start("build", "b", str(studio.root), ["pass"], {}, form, PYTHON)
        ended(jobs, job.id)
    page = studio.page("/jobs").text
    assert 'name="variants" value="4"' in page and ">compose.pair_rate=1</textarea>" in page
    assert (
        studio.csrf["x-csrf-token"]
        not in (tmp_path / f"data-runs/.studio/jobs/{job.id}/job.json").read_text()
    )


def test_a_form_needs_the_pages_token(studio: Client) -> None:
    answer = studio.http.post("/jobs/start/build", data={"preset": "pocket"})
    assert answer.status_code == 403


@pytest.mark.slow
def test_a_job_from_its_form_to_its_error(studio: Client) -> None:
    """The real command, on a damaged shard, and what it says."""
    for shard in (studio.root / "shards").glob("*.tar"):
        shard.write_bytes(shard.read_bytes()[:-1])
    answer = studio.form("/jobs/start/train", name="first", preset="pocket", settings="", steps="1",
                         objective="")  # fmt: skip
    assert answer.status_code == 303
    where = answer.headers["location"]
    assert studio.page(where).status_code == 200
    deadline = time.monotonic() + 120
    while (told := studio.get(f"{where}/state").json())["active"]:
        assert time.monotonic() < deadline, told
        time.sleep(0.2)
    page = studio.page(where).text
    assert told["state"] == "failed" and ".tar is damaged: " in page, told
    assert "train first" in page and "focusdpo -v train --root" in page
    assert "train first" in studio.page("/jobs").text
    assert studio.get("/jobs/20260101-000000000000-build-abcdef").status_code == 400
    assert studio.get("/jobs/..%2f..").status_code == 404


def test_an_exports_files_are_offered_and_no_others(studio: Client, tmp_path: Path) -> None:
    folder = tmp_path / "data-runs" / "a-export"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("# a <script>alert(1)</script>")
    (folder / "secret").symlink_to("/etc/passwd")
    jobs = Jobs(tmp_path / "data-runs/.studio/jobs")
    job = jobs.start(
        "export", "export a", str(studio.root), ["pass"], {"export": str(folder)}, {}, PYTHON
    )
    ended(jobs, job.id)
    page = studio.page(f"/jobs/{job.id}").text
    assert "README.md" in page and "secret" not in page and "<script>alert" not in page
    answer = studio.get(f"/jobs/{job.id}/files/README.md")
    assert answer.status_code == 200 and "attachment" in answer.headers["content-disposition"]
    for name in ("secret", "..%2f..%2fdata%2fdataset.json", "nothing"):
        assert studio.get(f"/jobs/{job.id}/files/{name}").status_code == 404


def test_training_asks_about_decisions_that_no_build_has_taken_in(studio: Client) -> None:
    assert "Train without" not in studio.page("/jobs").text
    for pair in ("pair0", "pair1"):
        values = {"reviewer": "Ada", "pair": pair, "decision": "reject"}
        assert studio.post("/review/decide", json=values).status_code == 200
    page = studio.page("/jobs").text
    assert "2 decisions not in the dataset yet" in page and 'name="aware"' in page
    assert "2 decisions of reviewers not in the dataset yet" in studio.page("/runs").text
    answer = studio.form("/jobs/start/train", name="first", steps="1")
    assert answer.status_code == 400 and "tick “Train without the decisions" in answer.text
    jobs = studio.app.state.studio.jobs
    assert jobs.list() == []
    answer = studio.form("/jobs/start/train", name="first", steps="1", aware="yes")
    assert answer.status_code == 303
    (job,) = jobs.list()
    assert "aware" not in job.form, "the next training asks again"
    running(jobs, job.id)
    jobs.stop(job.id)
    ended(jobs, job.id)


def test_ones_own_subjects_are_evaluated_from_the_form(studio: Client, tmp_path: Path) -> None:
    (tmp_path / "data-runs/first/adapter").mkdir(parents=True)
    folder = tmp_path / "data-runs/.studio/subjects"
    fields = {"run": "first", "preset": "pocket"}
    answer = studio.form("/jobs/start/evaluate", scenes="../x", **fields)
    assert answer.status_code == 400 and "Who stands in the scenes: got" in answer.text
    assert not folder.exists()
    answer = studio.form("/jobs/start/evaluate", scenes=OWN, **fields)
    assert answer.status_code == 303
    jobs = studio.app.state.studio.jobs
    (job,) = jobs.list()
    running(jobs, job.id)
    jobs.stop(job.id)
    ended(jobs, job.id)
    command = " ".join(job.command)
    assert f"--protocol subjects --data {folder}" in command
    assert job.outputs == {"evaluation": str(tmp_path / "data-runs/first-evaluated-own")}
    store = Store.open(tmp_path / "again")
    config = IngestConfig(
        size=studio.app.state.studio.dataset().sample("pair0").images.win.shape[0]
    )
    read = ingest(folder, store, config).subjects
    built = studio.app.state.studio.dataset().subjects
    assert {one.id: one.digest for one in read} == {k: v["digest"] for k, v in built.items()}
