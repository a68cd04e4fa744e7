"""Outside weights: what is refused before anything is loaded, and what identifies a file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from focusdpo.data_schemas.errors import UserError
from focusdpo.store.checkpoints import (
    PROBE,
    digest_files,
    locate,
    read_header,
    require_class,
    require_tensors,
    weight_files,
)

FIELD = "models.backbone.base"


def weights(path: Path, **tensors: tuple[int, ...]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.zeros(shape, np.float32) for name, shape in tensors.items()}, path)
    return path


def test_a_header_tells_every_tensor(tmp_path: Path) -> None:
    found = read_header(weights(tmp_path / "m.safetensors", a=(2, 3), b=()), FIELD)
    assert {name: (t.dtype, t.shape) for name, t in found.items()} == {
        "a": ("F32", (2, 3)),
        "b": ("F32", ()),
    }


@given(st.integers(min_value=0))
def test_a_file_that_was_cut_off_is_refused(at: int) -> None:
    whole = save({"a": np.arange(12, dtype=np.float32), "b": np.ones((2, 2), np.float16)})
    cut = whole[: at % len(whole)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cut.safetensors"
        path.write_bytes(cut)
        with pytest.raises(UserError, match=r"models\.backbone\.base: .*cut\.safetensors"):
            read_header(path, FIELD)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    weights(tmp_path / "model-00001-of-00002.safetensors", a=(1,))
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"lacks model-2\.safetensors"):
        weight_files(tmp_path, FIELD)


def test_a_pickle_is_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04boom")
    with pytest.raises(UserError, match=r"pytorch_model\.bin, a pickle"):
        weight_files(tmp_path, FIELD)
    with pytest.raises(UserError, match="pickle by its name"):
        read_header(tmp_path / "pytorch_model.bin", FIELD)


def test_wrong_tensors_are_counted_and_named(tmp_path: Path) -> None:
    found = read_header(weights(tmp_path / "m.safetensors", a=(2, 3), c=(1,)), FIELD)
    with pytest.raises(UserError) as error:
        require_tensors(found, {"a": (3, 2), "b": (1,)}, FIELD, "a tiny model")
    message = str(error.value)
    for part in (FIELD, "a tiny model", "first: b", "first: c", "(2, 3), expected (3, 2)"):
        assert part in message
    require_tensors(found, {"a": (2, 3)}, FIELD, "a tiny model", exact=False)


def test_another_class_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    assert require_class(tmp_path, "UNet2DConditionModel", FIELD) == "UNet2DConditionModel"
    with pytest.raises(UserError, match="holds UNet2DConditionModel, expected FluxTransformer2D"):
        require_class(tmp_path, "FluxTransformer2DModel", FIELD)


def test_a_digest_sees_weights_and_settings(tmp_path: Path) -> None:
    one, other = tmp_path / "a.safetensors", tmp_path / "b" / "a.safetensors"
    big = np.random.default_rng(0).normal(size=(40, PROBE)).astype(np.float32)
    save_file({"w": big}, one)
    other.parent.mkdir()
    save_file({"w": big}, other)
    assert digest_files([one]) == digest_files([other])
    assert digest_files([one]) != digest_files([one], "bf16")
    save_file({"w": big + 0.001}, other)
    assert digest_files([one]) != digest_files([other])


def test_what_is_neither_here_nor_cached_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert locate(str(tmp_path), FIELD) == tmp_path
    with pytest.raises(UserError, match=r"hf download someone/model --local-dir DIR"):
        locate("someone/model", FIELD)
    with pytest.raises(UserError, match="does not exist"):
        locate("/no/such/folder", FIELD)


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does for a gated repository and for one that is not there."""

    def do_GET(self) -> None:
        gated = "/gated/" in self.path
        self.send_response(403 if gated else 404)
        self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
        self.send_header("X-Error-Message", "no")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def fetch_in_a_process(source: str, endpoint: str, cache: Path, offline: str = "0") -> str:
    """The hub's address is read when its library is imported."""
    code = (
        "from focusdpo.store.checkpoints import fetch\n"
        "from focusdpo.data_schemas.errors import UserError\n"
        f"try: fetch({source!r}, {FIELD!r})\n"
        "except UserError as error: print('refused:', error)"
    )
    env = os.environ | {
        "HF_ENDPOINT": endpoint,
        "HF_HUB_OFFLINE": offline,
        "HF_HUB_CACHE": str(cache),
        "NO_PROXY": "127.0.0.1",
    }
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("gated/model", "huggingface.co/gated/model, then log in with `hf auth login`"),
        ("absent/model", "the hub has no repository absent/model"),
    ],
)
def test_the_hubs_refusals_say_what_to_do(source: str, told: str, hub: str, tmp_path: Path) -> None:
    assert told in fetch_in_a_process(source, hub, tmp_path)


def test_no_network_says_what_to_do(tmp_path: Path) -> None:
    told = fetch_in_a_process("some/model", "http://127.0.0.1:9", tmp_path, offline="1")
    assert "the hub cannot be reached" in told and "--local-dir" in told
