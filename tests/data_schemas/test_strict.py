"""Settings and YAML as strangers write them: read as meant, or refused by file and in one line."""

from __future__ import annotations

import re

import pytest
from pydantic import ValidationError

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.strict import StrictModel, read_yaml


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps: " + "9" * 6000, "not YAML that can be read"),
        ("steps: 0" + "7" * 400, "not YAML that can be read"),
        ("day: 2020-13-45", "not YAML that can be read"),
        ("? [a, b]\n: 1", "line 1: a list or a mapping where a name is expected"),
        ("a: {? {b: c} : 1}", "line 1: a list or a mapping where a name is expected"),
        ("1: a\n1: b", "'1' is given a second time"),
    ],
)
def test_what_yaml_cannot_hold_is_refused_by_its_file(text: str, said: str) -> None:
    with pytest.raises(UserError, match=f"^mine.yaml.*{re.escape(said)}") as error:
        read_yaml(text, "mine.yaml")
    assert len(str(error.value)) < 300


def test_keys_are_names() -> None:
    assert read_yaml("1: a\n2020-01-01: b\non: c\n~: d", "mine.yaml") == {
        "1": "a", "2020-01-01": "b", "on": "c", "~": "d"
    }  # fmt: skip
    assert read_yaml("x: &x {a: 1}\ny: {<<: *x}", "mine.yaml")["y"] == {"a": 1}


def test_a_long_value_is_not_told_in_full() -> None:
    with pytest.raises(UserError, match="is read as a number, not as text") as error:
        read_yaml("class_name: " + "9" * 6000, "subject.yaml", texts_only=True)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_no_setting_is_infinite(value: float) -> None:
    class Config(StrictModel):
        lr: float = 0.1

    with pytest.raises(ValidationError, match="finite number"):
        Config(lr=value)
