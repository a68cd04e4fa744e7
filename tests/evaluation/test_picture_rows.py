"""Tables as people make them: spreadsheets' habits, broken lines, paths, boxes, 100,000 rows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import foreign_pictures as fp
import pytest
from foreign_pictures import RIGHT

from focusdpo.data_schemas.errors import UserError
from focusdpo.evaluation.measure.picture_folder import read_folder
from focusdpo.evaluation.measure.picture_rows import PictureTable, read_table
from focusdpo.evaluation.measure.public_layouts import read_layout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fp.write_rows(tmp_path, {"a": [RIGHT] * 2})
    return tmp_path


def read(folder: Path, name: str, text: str | bytes) -> PictureTable:
    data = text.encode() if isinstance(text, str) else text
    (folder / name).write_bytes(data)
    return read_table(folder / name, references=folder / "references")


def told(table: PictureTable) -> list[str]:
    return [str(one).partition(".csv, ")[2] or str(one) for one in table.problems]


@pytest.mark.parametrize(
    "text",
    [
        "image,prompt,subjects\na-0.png,p,red;blue\n",
        "\ufeffImage;Prompt;Subjects\r\na-0.png;p;\"red;blue\"\r\n\r\n;;\r\n",
        "image\tsubjects\tprompt\na-0.png\tred + blue\tp\n",
        'image,subjects,prompt\n"a-0.png","[""red"", {""name"": ""blue""}]",p\n',
    ],
)  # fmt: skip
def test_what_spreadsheets_write_is_read(folder: Path, text: str) -> None:
    table = read(folder, "t.csv", text)
    assert not table.problems
    (row,) = table.rows
    assert [one.name for one in row.subjects] == ["red", "blue"] and row.prompt == "p"
    assert row.subjects[1].class_name == "square" and len(row.subjects[0].references) == 2


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("gone.png,red", "there is no picture"),
        ("../a-0.png,red", "leads out of"),
        ("/etc/passwd,red", "leads out of"),
        ("a-0.png,red;red", "'red' is named twice"),
        ("a-0.png,grey", "'grey' has no references"),
        ("a-0.png,", "0 subjects"),
        (",red", "no image"),
        ('a-0.png,"[{""name"": ""red"", ""box"": [5, 5, 1, 9]}]"', "x0 < x1"),
        ('a-0.png,"[{""name"": ""x y""}]"', "letters, digits"),
        ('a-0.png,"[{"', "no JSON"),
        ("a-0.png,red,x,y", "4 cells"),
    ],
)
def test_a_bad_row_is_named_and_the_rest_goes_on(folder: Path, line: str, words: str) -> None:
    table = read(folder, "t.csv", f"image,subjects\n{line}\na-1.png,red;blue\n")
    assert [row.image.name for row in table.rows] == ["a-1.png"]
    (problem,) = table.problems
    assert problem.where.endswith("t.csv, line 2") and words in problem.message


def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path_factory) -> None:  # type: ignore[no-untyped-def]
    outside = tmp_path_factory.mktemp("outside") / "secret.png"
    outside.write_bytes(b"x")
    (folder / "link.png").symlink_to(outside)
    table = read(folder, "t.csv", "image,subjects\nlink.png,red\n")
    assert "a link that leads out" in told(table)[0]


def test_broken_lines_of_jsonl_are_named(folder: Path) -> None:
    good = json.dumps({"image": "a-0.png", "subjects": ["red"]})
    table = read(folder, "t.jsonl", f"{good}\n{{broken\n\n[1]\n{good}\n")
    assert len(table.rows) == 2 and [row.line for row in table.rows] == [1, 5]
    assert ["line 2" in str(one) or "line 4" in str(one) for one in table.problems] == [True] * 2


def test_parquet_and_own_references(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    own = {
        "name": "mine", "class": "disc", "references": ["references/red/0.png"],
        "masks": None, "box": [0, 0, 24, 48],
    }  # fmt: skip
    rows = [
        {"image": "a-0.png", "prompt": "p", "subjects": [own], "seed": 3},
        {"image": "a-1.png", "prompt": "p", "subjects": [{**own, "class": "square"}], "seed": 4},
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "t.parquet")
    table = read_table(folder / "t.parquet")
    (row,) = table.rows
    assert row.boxes == ((0, 0, 24, 48),) and row.seed == 3
    assert "another class" in table.problems[0].message and "line 1" in table.problems[0].message
    (folder / "t.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match="not a readable Parquet"):
        read_table(folder / "t.parquet")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,who\na,b\n", "no column `image`"),
        ("", "no rows"),
        ("image,subjects\n", "no rows"),
        ("image,subjects,image\n1,2,3\n", "two columns `image`"),
        ("image,subjects\n".encode("utf-16"), "UTF-16"),
        (b"image,subjects\n\xe9,red\n", "not UTF-8"),
    ],
)
def test_what_is_no_table_is_refused(folder: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read(folder, "t.csv", text)


def test_an_open_quotation_mark_is_named(folder: Path) -> None:
    table = read(folder, "t.csv", 'image,subjects\na-0.png,red\na-1.png,"red\n')
    assert len(table.rows) == 1 and "left open" in table.problems[0].message


def test_a_folder_in_the_documented_layout(folder: Path) -> None:
    for model in ("uno", "ours"):
        (folder / model).mkdir()
        for name in ("red+blue--1", "red--a", "grey--1", "red+red--1"):
            (folder / model / f"{name}.png").write_bytes((folder / "a-0.png").read_bytes())
    (folder / "uno" / "red--a.txt").write_text("a  disc\nin snow")
    for file in folder.glob("a-*.png"):
        file.unlink()
    table = read_folder(folder)
    asked = {(row.model, row.prompt, len(row.subjects)) for row in table.rows}
    assert asked == {
        ("uno", "a disc and a square", 2), ("ours", "a disc and a square", 2),
        ("uno", "a disc in snow", 1), ("ours", "a disc", 1),
    }  # fmt: skip
    assert len(table.problems) == 4 and any("'grey'" in str(one) for one in table.problems)


def test_xversebench_as_it_is_published(folder: Path) -> None:
    bench, results = folder / "XVerse", folder / "results"
    (bench / "eval" / "tools").mkdir(parents=True)
    (bench / "assets").mkdir()
    results.mkdir()
    picture = (folder / "references" / "red" / "0.png").read_bytes()
    for name in ("dog.png", "cup.png"):
        (bench / "assets" / name).write_bytes(picture)
    told = {
        "src_inputs": [{"image_path": "assets/dog.png"}, {"image_path": "assets/cup.png"}],
        "use_words": [[0, "dog"], [1, "cup"]],
    }
    samples = [{"index": 7, "prompt": "a dog beside a cup", "modulation": [told]}]
    (bench / "eval" / "tools" / "XVerseBench_multi.json").write_text(json.dumps(samples))
    for name in ("7_a_dog_beside_a_cup.png", "8_unknown.png"):
        (results / name).write_bytes(picture)
    table = read_layout("xversebench-multi", results, bench)
    assert [row.quarter for row in table.rows] == [0, 1, 2, 3]
    assert [one.class_name for one in table.rows[0].subjects] == ["dog", "cup"]
    assert len(table.problems) == 1 and "no sample 8" in str(table.problems[0])
    with pytest.raises(UserError, match="its prompts are needed"):
        read_layout("xversebench-multi", results, None)


def test_multibanana_as_it_is_published(folder: Path) -> None:
    data = folder / "data"
    picture = (folder / "a-0.png").read_bytes()
    for task in ("3_local", "3_back"):
        (data / task).mkdir(parents=True)
        for name in ("006_0.jpg", "006_1.jpg", "006_generated.jpg"):
            (data / task / name).write_bytes(picture)
        (data / task / "006_prompt.txt").write_text("Put both on a table")
    table = read_layout("multibanana", data, None)
    (row,) = table.rows
    assert row.prompt == "Put both on a table" and len(row.subjects) == 2
    assert "background" in str(table.problems[0])


PLANNED = """
import sys, time
from pathlib import Path
from focusdpo.evaluation.measure.foreign_plan import plan_pictures
from focusdpo.evaluation.measure.picture_rows import read_table
folder = Path(sys.argv[1])
started = time.process_time()
plan = plan_pictures(read_table(folder / "many.csv", references=folder / "references"))
seconds = time.process_time() - started
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(len(plan.pictures), len(plan.key), seconds, int(peak.split()[1]) / 1024)
"""


@pytest.mark.slow
def test_a_hundred_thousand_rows_are_planned_in_seconds(folder: Path) -> None:
    lines = ["image,prompt,subjects,model,seed"]
    lines += [f"a-{n % 2}.png,prompt {n // 4},red;blue,m{n % 2},{n}" for n in range(100_000)]
    (folder / "many.csv").write_text("\n".join(lines))
    done = subprocess.run(
        [sys.executable, "-c", PLANNED, str(folder)], capture_output=True, text=True, check=True
    )
    rows, digits, seconds, mebibytes = (float(word) for word in done.stdout.split())
    assert rows == 100_000 and digits == 32
    assert seconds < 10 and mebibytes < 500
