"""The GPU benchmark, on the CPU: what it builds, what it measures, and running out of memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from exact import to_double
from policy_step import give_policy
from tiny_bench import tiny_bench
from torch import nn

from benchmarks import step_cost
from benchmarks.gpu import gpu_steps
from benchmarks.gpu.device import Flops, Trace, attempt, device_facts, limited, require_device
from benchmarks.gpu.full_size_models import lora_config, random_backbone, random_batch
from benchmarks.gpu.gpu_config import (
    STRAIGHTFORWARD,
    GpuBenchConfig,
    ModelName,
    Row,
    Setting,
)
from benchmarks.gpu.gpu_steps import frozen_copy, straightforward_dpo
from focusdpo.data_schemas.errors import UserError
from focusdpo.model.adapter import add_policy, policy_parameters
from focusdpo.model.backbone import Backbone
from focusdpo.model.noise import draw_noise
from focusdpo.model.step import pair_step
from focusdpo.model.training.config import ObjectiveConfig, TrainConfig

MODELS: tuple[ModelName, ...] = ("flux", "sdxl", "klein")
FLOPS = (Flops(10, 12), Flops(9, 0))


@pytest.fixture(params=MODELS)
def built(request: pytest.FixtureRequest) -> Backbone:
    return random_backbone(request.param, tiny_bench(), "fp32")


def setting(methods: tuple[str, ...] = ("sft", "dpo", "focus_dpo"), **changes: Any) -> Setting:
    return Setting(
        **{
            "model": "flux",
            "base": "fp32",
            "pairs": 1,
            "checkpointing": False,
            "methods": methods,
            **changes,
        }
    )


def by_method(rows: list[Row]) -> dict[str, Row]:
    return {row.method: row for row in rows}


# What is built


@pytest.mark.parametrize(
    "model, parameters",
    [
        # FLUX.1-dev's and SDXL base 1.0's published weights have so many.
        ("flux", 11_901_408_320),
        ("sdxl", 2_567_463_684),
        ("klein", 3_875_544_576),
    ],
)
def test_full_size_is_the_public_size(model: ModelName, parameters: int) -> None:
    backbone = random_backbone(model, GpuBenchConfig(), "bf16", "meta")
    own = {
        name: p
        for name, p in backbone.transformer.named_parameters()
        if "_ip." not in name  # IP-Adapter's
    }
    assert sum(p.numel() for p in own.values()) == parameters
    assert {p.dtype for p in own.values()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in own.values())


def test_ip_adapter_plus_has_its_public_size() -> None:
    backbone = random_backbone("sdxl", GpuBenchConfig(), "bf16", "meta")
    sizes = [p.numel() for n, p in backbone.transformer.named_parameters() if "_ip." in n]
    # 70 cross-attentions: 10 of width 640 and 60 of 1280, keys and values of 2048 each
    assert len(sizes) == 140
    assert sum(sizes) == 2 * 2048 * (10 * 640 + 60 * 1280)


def test_sizes_are_uno_s_at_512_pixels() -> None:
    config = GpuBenchConfig(scale="tiny", device="cpu")
    batch = random_batch(random_backbone("flux", config, "fp32"), config, 1)
    assert batch.win_BNC.shape == (1, 1024, 64)
    assert [t.shape for t in batch.references.tokens] == [(1, 400, 64)] * 2
    assert batch.prompts.embeds_BTD.shape[1] == 512


def test_random_weights_are_alive(built: Backbone) -> None:
    batch = random_batch(built, tiny_bench(), 2)
    sigma_B = torch.tensor([0.1, 0.9])
    output = built.predict(batch.win_BNC, sigma_B, batch.prompts, batch.references).output_BNC
    assert output.shape == batch.win_BNC.shape
    assert output.isfinite().all()
    assert output.std() > 1e-3
    assert batch.priors.subjects_BRN.sum(2).min() > 0
    norms = [m for m in built.transformer.modules() if isinstance(m, nn.GroupNorm)]
    assert all((norm.weight == 1).all() and (norm.bias == 0).all() for norm in norms)


@pytest.mark.parametrize("method", ["dpo", "focus_dpo"])
def test_a_quantised_base_takes_steps(method: str) -> None:
    pytest.importorskip("bitsandbytes")
    config = tiny_bench()
    backbone = random_backbone("flux", config, "nf4")
    linear: Any = backbone.transformer.get_submodule("transformer_blocks.0.attn.to_q")
    assert type(linear).__name__ == "Linear4bit" and linear.weight.quant_state is not None
    (row,) = gpu_steps.measure(backbone, setting((method,), base="nf4"), config, FLOPS)
    assert row.failure is None and row.seconds
    assert not policy_parameters(backbone.transformer)


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_without_bitsandbytes_it_says_so() -> None:
    with pytest.raises(UserError, match="pip install bitsandbytes"):
        random_backbone("flux", tiny_bench(), "nf4")


# The straightforward implementation


def in_float64(backbone: Backbone) -> None:
    """The model computes in float64."""
    backbone.transformer.double()
    for name in ("_dtype", "dtype"):
        if isinstance(getattr(backbone, name, None), torch.dtype):
            setattr(backbone, name, torch.float64)


@pytest.mark.parametrize("model", MODELS)
def test_its_gradients_are_ours(model: ModelName, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every `.float()` on the way (errors, rotation) is made exact, so that nothing but the order
    of sums differs."""
    config = tiny_bench()
    backbone = random_backbone(model, config, "fp32")
    batch = random_batch(backbone, config, 2)
    frozen = frozen_copy(backbone)
    give_policy(backbone, lora_config(backbone, config), by=0.1)
    for one in (backbone, frozen):
        in_float64(one)
    train = TrainConfig(objective=ObjectiveConfig(name="dpo", beta=30.0), mixed_precision="no")
    noise_BNC, sigma_B = draw_noise(batch.win_BNC, range(2), seed=0, step=0, config=train.noise)
    inputs = (noise_BNC.double(), sigma_B.double())
    doubled = to_double(batch)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    parameters = list(policy_parameters(backbone.transformer).values())
    ours = pair_step(backbone, doubled, *inputs, train).loss.value
    plain = straightforward_dpo(backbone, frozen, doubled, *inputs, beta=30.0)
    assert plain.item() == pytest.approx(ours.item(), rel=1e-9)
    assert abs(ours.item() - 0.6931) > 1e-6, "the policy is not the reference policy"
    wanted = torch.autograd.grad(ours, parameters)
    for a, b in zip(wanted, torch.autograd.grad(plain, parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)
    assert all(a.abs().sum() > 0 for a in wanted)


def test_the_copy_is_of_its_own(built: Backbone) -> None:
    frozen = frozen_copy(built)
    add_policy(built.transformer, lora_config(built, tiny_bench()), seed=0)
    assert policy_parameters(built.transformer)
    assert not policy_parameters(frozen.transformer)
    ours = {p.data_ptr() for p in built.transformer.parameters()}
    assert not ours & {p.data_ptr() for p in frozen.transformer.parameters()}


# What is measured


@pytest.mark.slow
def test_a_row_per_method(built: Backbone) -> None:
    name: ModelName = "sdxl" if hasattr(built, "noise") else "flux"
    rows = by_method(gpu_steps.measure(built, setting(model=name), tiny_bench(), FLOPS))
    assert list(rows) == ["sft", "dpo", "focus_dpo"]
    for row in rows.values():
        assert row.failure is None and row.seconds is not None and row.seconds > 0
        assert row.peak_bytes is None, "a CPU's memory is not measured"
    assert [row.step_flops for row in rows.values()] == [22, 62, 62]
    assert rows["dpo"].to_dpo == 1.0
    # FLUX: no further pass for the maps. SDXL: one over the references (unet_self).
    passes = [row.passes for row in rows.values()]
    assert passes == ([1, 2, 2] if name == "flux" else [1, 2, 3])
    assert not policy_parameters(built.transformer)


def test_the_straightforward_one_takes_four_passes(built: Backbone) -> None:
    (row,) = gpu_steps.measure(built, setting((STRAIGHTFORWARD,)), tiny_bench(), FLOPS)
    assert (row.passes, row.step_flops, row.failure) == (4, 62, None)


@pytest.mark.parametrize("memory", ["joint", "sequential"])
@pytest.mark.slow
def test_checkpointing_is_on_in_the_step_alone(
    built: Backbone, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    original = step_cost.backward_step

    def spy(backbone: Backbone, *args: Any) -> Any:
        core: Any = backbone.transformer
        seen.append((core.is_gradient_checkpointing, args[3].memory))
        return original(backbone, *args)

    monkeypatch.setattr(step_cost, "backward_step", spy)
    wanted = setting(("dpo",), checkpointing=True, memory=memory)
    gpu_steps.measure(built, wanted, tiny_bench(), FLOPS)
    core: Any = built.transformer
    assert set(seen) == {(True, memory)}
    assert not core.is_gradient_checkpointing


# Running out of memory


def real_exhaustion() -> None:
    """Asks the CPU's allocator for more than any machine has."""
    torch.empty(2**60, dtype=torch.uint8)


def gpu_exhaustion() -> None:
    """What CUDA's allocator raises."""
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 3.25 GiB. GPU 0 has a total capacity of 79.1 GiB"
    )


@contextmanager
def failing(backbone: Backbone, fail: Callable[[], None], at: int) -> Iterator[None]:
    """The transformer's pass number `at` (from 1, over all steps) fails."""
    calls: list[int] = []

    def hook(*_: Any) -> None:
        calls.append(1)
        if len(calls) >= at:
            fail()

    block = next(m for m in backbone.transformer.modules() if isinstance(m, nn.Linear))
    handle = block.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("fail", [real_exhaustion, gpu_exhaustion])
@pytest.mark.slow
def test_it_is_a_result_and_the_rest_goes_on(fail: Callable[[], None]) -> None:
    config = tiny_bench()
    backbone = random_backbone("flux", config, "fp32")
    before = {name: p.clone() for name, p in backbone.transformer.named_parameters()}
    one: dict[str, int] = {}

    def after_sft() -> None:
        """The dpo steps fail, the others do not."""
        one["calls"] = one.get("calls", 0) + 1
        if one["calls"] == 1:
            fail()

    with failing(backbone, after_sft, at=3):  # a sft pass, a reference pass, the policy's
        rows = by_method(gpu_steps.measure(backbone, setting(), config, FLOPS))
    assert rows["dpo"].failure is not None
    assert rows["dpo"].failure.startswith("out of memory in forward pass 2")
    if fail is gpu_exhaustion:
        assert rows["dpo"].failure.endswith("(3.25 GiB more)")
    assert rows["dpo"].seconds is None and rows["dpo"].passes is None
    assert rows["sft"].seconds and rows["focus_dpo"].seconds
    assert rows["focus_dpo"].to_dpo is None
    after = dict(backbone.transformer.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_failing_while_timed_is_a_result_too() -> None:
    config = tiny_bench()
    backbone = random_backbone("flux", config, "fp32")
    with failing(backbone, gpu_exhaustion, at=2):
        (row,) = gpu_steps.measure(backbone, setting(("sft",)), config, FLOPS)
    assert row.failure == "out of memory in forward pass 1 (3.25 GiB more)"
    assert row.seconds is None


@pytest.mark.slow
def test_a_model_that_does_not_fit_fails_all_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Backbone:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 72.00 MiB")

    monkeypatch.setattr(gpu_steps, "image_flops", lambda *_: FLOPS)
    monkeypatch.setattr(gpu_steps, "random_backbone", fail)
    rows = list(gpu_steps.bench_rows(tiny_bench(models=("flux",))))
    assert len(rows) == 2 * (3 + 1 + 2)
    assert {row.failure for row in rows} == {"out of memory loading the model (72.00 MiB more)"}


def test_other_errors_are_no_results() -> None:
    def broken() -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        attempt(broken, Trace())


def test_what_a_failed_attempt_held_is_free() -> None:
    class Held:
        alive = 0

        def __init__(self) -> None:
            Held.alive += 1

        def __del__(self) -> None:
            Held.alive -= 1

    def run() -> None:
        held = Held()
        assert held
        gpu_exhaustion()

    assert attempt(run, Trace("here"))[1] == "out of memory here (3.25 GiB more)"
    assert Held.alive == 0


# Settings and devices


def test_what_is_measured_by_default() -> None:
    config = GpuBenchConfig(quantised="no")
    settings = list(config.settings("flux", "bf16"))
    assert settings[0].limit_gib == 48 and settings[0].pairs == 1 and settings[0].checkpointing
    ours = {
        (s.pairs, s.checkpointing)
        for s in settings
        if s.methods == ("sft", "dpo", "focus_dpo") and s.memory == "joint"
    }
    plain = {(s.pairs, s.checkpointing) for s in settings if s.methods == (STRAIGHTFORWARD,)}
    assert ours == plain == {(n, on) for n in (1, 2, 3, 4) for on in (True, False)}
    assert [s.memory for s in settings].count("sequential") == 2
    assert [s.limit_gib for s in config.settings("sdxl", "bf16")][0] == 24


def test_the_quantised_base_is_measured_with_one_pair() -> None:
    config = GpuBenchConfig(quantised="yes")
    assert config.bases("flux") == ("bf16", "nf4")
    assert config.bases("sdxl") == ("bf16",)
    assert [(s.pairs, s.limit_gib) for s in config.settings("flux", "nf4")] == [(1, 24), (1, None)]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"image_size": 500}, "multiple of 32"),
        ({"pairs": (0,)}, "at least 1"),
        ({"pair": 1}, "Extra inputs"),
        ({"models": ("sd3",)}, "'flux', 'sdxl' or 'klein'"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GpuBenchConfig(**changes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(UserError, match="needs a CUDA device, and torch sees none"):
        require_device("cuda")


@pytest.mark.parametrize("device", ["gpu", "mps"])
def test_a_device_that_cannot_be_measured(device: str) -> None:
    with pytest.raises(UserError, match="expected cuda"):
        require_device(device)


def test_facts_of_a_cpu() -> None:
    require_device("cpu")
    assert device_facts("cpu") == {"device": "cpu", "torch": torch.__version__}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_memory_is_measured_and_limits_hold() -> None:
    config = tiny_bench(device="cuda", models=("flux",), checkpointing=(True,))
    rows = list(gpu_steps.bench_rows(config))
    assert all(row.failure is None and row.peak_bytes for row in rows)
    with limited(1.5, "cuda"):  # half a GiB, after what CUDA itself takes
        taken, failure = attempt(lambda: torch.empty(2**30, device="cuda"), Trace("within"))
    assert taken is None and failure is not None and failure.startswith("out of memory within")
    assert attempt(lambda: torch.empty(2**28, device="cuda"), Trace())[1] is None
