"""A disk that is full while an export or a report is written."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_fixture import make_report
from small_disk import no_file_beyond, small_disk

from focusdpo.data_schemas.errors import UserError
from focusdpo.flows.terminal import in_words
from focusdpo.reports import report
from focusdpo.sharing.hub import whole_folder


def test_an_export_names_its_folder_and_leaves_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        out = disk / "share"
        with pytest.raises(OSError) as error, whole_folder(out) as folder:  # noqa: PT011
            (folder / "shard.tar").write_bytes(b"0" * (2 << 20))
        assert in_words(error.value).startswith(f"{out}: no space left on device; free some space")
        assert list(disk.iterdir()) == []


def test_numbers_of_a_page_do_not_come_without_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_report(tmp_path / "of")
    monkeypatch.setattr(report, "collect", lambda **_: data)
    numbers, page = len(report.record_json(data)), len(report.render(data))
    assert numbers < page, "else this shows nothing"
    out = tmp_path / "pages" / "report.html"
    nothing = {"root": None, "train_dir": None, "evaluate_dir": None}
    with no_file_beyond((numbers + page) // 2), pytest.raises(UserError, match="cannot be written"):
        report.write_report(out, **nothing)  # type: ignore[arg-type]
    assert list(out.parent.iterdir()) == []
