"""The policy: one LoRA (or DoRA, or LoKr) on the transformer of the backbone, or whole matrices of
it; the reference policy is the same weights without.

A backbone asks for it by naming the modules on its transformer (`choose`); `model.adapter` then
adds, removes and switches these layers as it does LoRA layers.

On disk: `pytorch_lora_weights.safetensors` in diffusers' layout (a pipeline's `load_lora_weights`
reads it) and `adapter.json`, a card that says what it was trained on and for.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from pydantic import Field, ValidationError
from torch import Tensor, nn

from focusdpo.data_schemas.errors import UserError
from focusdpo.data_schemas.strict import StrictModel, first_problem
from focusdpo.model.backbone import Backbone
from focusdpo.model.training.config import LoraConfig
from focusdpo.store.keys import SEAL, sealed, unsealed
from focusdpo.store.local import write_whole
from focusdpo.store.provenance import ADAPTER_FOLDER, require_kind

_CHOSEN = "_full_policy_modules"


class TrainedCopy(nn.Module):
    """A linear layer with a trainable copy of itself.

    The copy is float32 and is rounded to the input's type for each product, so that an untrained
    one gives what the base gives, bit for bit. `_disable_adapters` is peft's name for its like."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer.requires_grad_(False)
        self.policy = nn.Linear(
            base_layer.in_features,
            base_layer.out_features,
            bias=base_layer.bias is not None,
            device=base_layer.weight.device,
            dtype=torch.float32,
        )
        self._disable_adapters = False
        self._scale = 1.0
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """The start weights again."""
        for name, parameter in self.policy.named_parameters():
            parameter.copy_(self.base_layer.get_parameter(name))

    def set_scale(self, _name: str, scale: float) -> None:
        """Weights between the start (0) and what was trained (1), or beyond."""
        self._scale = scale

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if self._disable_adapters:
            result: Tensor = self.base_layer(hidden)
            return result
        weight, bias = (self._scaled(name) for name in ("weight", "bias"))
        return F.linear(hidden, weight.to(hidden.dtype), bias if bias is None else bias.to(hidden))

    def _scaled(self, name: str) -> Any:
        trained, start = getattr(self.policy, name), getattr(self.base_layer, name)
        if trained is None or self._scale == 1:
            return trained
        return torch.lerp(start.to(trained.dtype), trained, self._scale)


def choose(transformer: nn.Module, names: tuple[str, ...]) -> None:
    """From now on a policy on this transformer is a trained copy of these modules (suffixes)."""
    setattr(transformer, _CHOSEN, names)


def chosen(transformer: nn.Module) -> tuple[str, ...]:
    """The modules that a policy copies; none: it is a LoRA."""
    names: tuple[str, ...] = getattr(transformer, _CHOSEN, ())
    return names


def add_copies(transformer: nn.Module, config: LoraConfig) -> None:
    """Puts trainable copies in place. UserError for other targets than the chosen ones and for a
    kind: rank, targets and kind of a LoRA mean nothing here."""
    names = chosen(transformer)
    trains = (
        f"this backbone trains {' and '.join(names)} themselves (models.backbone.policy is "
        "adapter_kv)"
    )
    if config.targets and set(config.targets) != set(names):
        raise UserError(
            f"lora.targets {list(config.targets)}: {trains}; leave lora.targets empty, or set "
            "policy: lora"
        )
    if config.kind != "lora":
        raise UserError(
            f"lora.kind {config.kind}: {trains}; leave lora.kind lora, or set policy: lora"
        )
    for name, module in list(transformer.named_modules()):
        if name.endswith(tuple(f".{suffix}" for suffix in names)):
            transformer.set_submodule(name, TrainedCopy(module))  # type: ignore[arg-type]


NAME = "policy"
WEIGHTS = "pytorch_lora_weights.safetensors"
CARD = "adapter.json"
_PREFIX = re.compile(r"^(transformer|unet)\.")


class AdapterCard(StrictModel):
    """What an adapter is: enough to refuse it where it does not belong."""

    schema_version: int = Field(1, description="of this card")
    lora: LoraConfig = Field(description="with the targets that were really covered")
    base_fingerprint: str = Field(description="the backbone it was trained on")
    dataset_version: str = Field(description="the dataset it was trained on")
    objective: str = Field(description="name of the objective")
    step: int = Field(description="optimiser steps taken")
    train_config: dict[str, Any] = Field(default_factory=dict, description="the whole config")
    licences: tuple[str, ...] = Field(
        (), description="of the base's weights and of the subjects' pictures: they bind the adapter"
    )
    weights_digest: str = Field("", description="blake2b of the weights file")


def _layers(transformer: nn.Module) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    kinds = (BaseTunerLayer, TrainedCopy)
    return [module for module in transformer.modules() if isinstance(module, kinds)]


def _peft_config(config: LoraConfig) -> Any:
    """What peft calls each kind."""
    import peft

    targets = list(config.targets)
    if config.kind == "lokr":
        return peft.LoKrConfig(r=config.rank, alpha=config.alpha, target_modules=targets)  # type: ignore[arg-type]
    return peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        target_modules=targets,
        init_lora_weights=True,
        use_dora=config.kind == "dora",
    )


def add_policy(transformer: nn.Module, config: LoraConfig, *, seed: int) -> None:
    """Adds an adapter that changes nothing yet (a LoRA's B is zero) and freezes everything else;
    or, where the backbone asks for it (`model.adapter`), trainable copies of some layers.

    Its start depends on `seed` alone. Weights are float32 whatever the base's type. UserError for
    targets that are not there and a base that the kind cannot be laid on."""
    transformer.requires_grad_(False)
    if chosen(transformer):
        add_copies(transformer, config)
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            cast("Any", transformer).add_adapter(_peft_config(config), adapter_name=NAME)
        except ValueError as error:
            raise UserError(
                f"lora.targets {list(config.targets)}: {error}. "
                "Name modules of the backbone's transformer, or leave it empty for its default."
            ) from error
    for parameter in policy_parameters(transformer).values():
        parameter.data = parameter.data.float()
    if config.kind == "lokr":
        _require_whole(transformer)
        for layer in _layers(transformer):
            layer.eval()  # else peft draws at each pass whether a layer is left out
    if config.kind == "dora":
        _measure_rows(transformer)


def _require_whole(transformer: nn.Module) -> None:
    """UserError where a covered layer does not keep its weight as rows and columns."""
    for layer in _layers(transformer):
        base = layer.get_base_layer()
        if base.weight.shape != (base.out_features, base.in_features):
            remove_policy(transformer)
            raise UserError(
                "lora.kind lokr makes a whole matrix beside each of the base's, and this base is "
                "in 4 bits; set models.backbone.quantise to none or 8bit, or lora.kind to lora"
            )


@torch.no_grad()
def _measure_rows(transformer: nn.Module) -> None:
    """A DoRA's lengths of rows, once more in float32: as a pass computes them, so that a fresh one
    gives what the reference policy gives, bit for bit, on a base in 16 bits as well."""
    for layer in _layers(transformer):
        layer.lora_magnitude_vector[NAME].update_layer(
            base_layer=layer.get_base_layer(),
            lora_A=layer.lora_A[NAME].weight,
            lora_B=layer.lora_B[NAME].weight,
            scaling=layer.scaling[NAME],
        )


def remove_policy(transformer: nn.Module) -> None:
    """Takes the LoRA, or the trained copies, away and leaves the base as it was, frozen."""
    if chosen(transformer):
        for name, module in list(transformer.named_modules()):
            if isinstance(module, TrainedCopy):
                transformer.set_submodule(name, module.base_layer)
    elif _layers(transformer):
        cast("Any", transformer).unload_lora()


def policy_parameters(transformer: nn.Module) -> dict[str, nn.Parameter]:
    """The policy's parameters by name, in a fixed order."""
    return {
        name: parameter
        for name, parameter in sorted(transformer.named_parameters())
        if f".{NAME}." in f"{name}."
    }


@contextmanager
def reference_policy(transformer: nn.Module) -> Iterator[None]:
    """Inside, the transformer is the reference policy: the LoRA has scale 0.

    Its layers skip the LoRA, so the output equals the base's bit for bit and costs no more. peft's
    own `disable_adapters` also flips requires_grad, which breaks sharded training and may thaw
    frozen adapters; this touches no parameter. Use it under no_grad, and never between a
    checkpointed forward pass and its backward."""
    layers = _layers(transformer)
    before = [layer._disable_adapters for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = True
        yield
    finally:
        for layer, flag in zip(layers, before, strict=True):
            layer._disable_adapters = flag


def set_scale(transformer: nn.Module, scale: float) -> None:
    """Multiplies what the adapter adds by `scale` (1: as trained). UserError for a DoRA, which
    replaces its rows' lengths and adds nothing that could be scaled."""
    for layer in _layers(transformer):
        if scale != 1 and NAME in getattr(layer, "lora_magnitude_vector", {}):
            raise UserError(f"a DoRA has no scale but 1, and {scale:g} is asked for")
        layer.set_scale(NAME, scale)


def _short_name(name: str) -> str:
    """Module path without peft's adapter name: `x.lora_A.policy.weight` -> `x.lora_A.weight`,
    `x.lokr_w1.policy` -> `x.lokr_w1`."""
    return f"{name}.".replace(f".{NAME}.", ".").removesuffix(".")


def _prefix(transformer: nn.Module) -> str:
    """What diffusers' pipelines put before the module names of their denoiser."""
    return "unet." if hasattr(transformer, "up_blocks") else "transformer."


def save_adapter(
    directory: Path, transformer: nn.Module, card: AdapterCard, weights: Mapping[str, Tensor]
) -> None:
    """Writes weights (by `policy_parameters` names), then the card: a folder with a card whose
    digest fits is whole."""
    from safetensors.torch import save

    prefix = _prefix(transformer)
    tensors = {
        f"{prefix}{_short_name(name)}": tensor.detach().float().cpu().contiguous()
        for name, tensor in weights.items()
    }
    metadata: dict[str, str] = {}
    if not chosen(transformer):
        peft_config = cast("Any", transformer).peft_config[NAME].to_dict()
        plain = {k: sorted(v) if isinstance(v, set) else v for k, v in peft_config.items()}
        prefixed = {f"{prefix}{key}": value for key, value in plain.items()}
        # One metadata key: safetensors writes several in an order that changes from run to run.
        metadata = {"lora_adapter_metadata": json.dumps(prefixed, sort_keys=True)}
    data = save(tensors, metadata)
    card = card.model_copy(update={"weights_digest": weights_digest(data)})
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(directory / WEIGHTS, data)
    write_whole(directory / CARD, card_bytes(card))


def card_bytes(card: AdapterCard) -> bytes:
    """As it is written, sealed."""
    return sealed(card.model_dump(mode="json"))


def weights_digest(data: bytes) -> str:
    """What a card says of its weights file."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def read_card(directory: Path) -> AdapterCard:
    """The card of an adapter folder."""
    path = directory / CARD
    require_kind(directory, ADAPTER_FOLDER)
    if not path.is_file():
        raise UserError(
            f"{directory}: no {CARD} here. Expected the folder that training writes "
            f"(<run>/adapter with {CARD} and {WEIGHTS})."
        )
    try:
        return AdapterCard.model_validate_json(json.dumps(unsealed(path.read_bytes())))
    except ValidationError as error:
        raise UserError(f"{path}: not an adapter card ({first_problem(error)}). {_ANEW}") from error
    except ValueError as error:
        raise UserError(
            f'{path}: damaged ({error}). {_ANEW} Where you changed it yourself, take "{SEAL}" out'
        ) from error


_ANEW = "Train again, or copy the folder anew from where it was whole."


def read_weights(directory: Path, card: AdapterCard) -> dict[str, Tensor]:
    """An adapter folder's tensors by module path. UserError for a damaged file."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = directory / WEIGHTS
    if not path.is_file():
        raise UserError(f"{path} is missing. Copy the adapter folder anew, or train again.")
    data = path.read_bytes()
    broken = f"{path} is corrupt or truncated ({len(data)} bytes). Copy it anew, or train again."
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise UserError(f"{broken} ({error})") from error
    if card.weights_digest and weights_digest(data) != card.weights_digest:
        raise UserError(
            f"{path} has changed since training: its bytes are not those that {CARD} names "
            "(damaged on the way, or saved again by another program). Copy it anew; if that was "
            f'meant, set weights_digest to "" in {directory / CARD} and take "{SEAL}" out'
        )
    return {_PREFIX.sub("", name): tensor for name, tensor in tensors.items()}


def load_adapter(backbone: Backbone, directory: Path, scale: float = 1.0) -> AdapterCard:
    """Puts a trained adapter on the backbone's transformer, replacing one that is there.

    UserError if the folder is incomplete, corrupt, made for another base, or does not fit."""
    directory = Path(directory)
    card = read_card(directory)
    tensors = read_weights(directory, card)
    remove_policy(backbone.transformer)
    if card.base_fingerprint != backbone.fingerprint:
        raise UserError(
            f"{directory}: trained on base {card.base_fingerprint}, but the base here is "
            f"{backbone.fingerprint}. Use the preset and weights it was trained with, or train "
            "an adapter for this base."
        )
    add_policy(backbone.transformer, card.lora, seed=0)
    parameters = policy_parameters(backbone.transformer)
    wanted = {_short_name(name): parameter for name, parameter in parameters.items()}
    wrong = sorted(wanted.keys() ^ tensors.keys()) or [
        name for name, tensor in tensors.items() if tensor.shape != wanted[name].shape
    ]
    if wrong:
        remove_policy(backbone.transformer)
        raise UserError(
            f"{directory / WEIGHTS}: {len(wrong)} tensors do not fit this transformer, the first "
            f"is {wrong[0]}. It belongs to another architecture; train one for this base."
        )
    for name, parameter in wanted.items():
        parameter.data.copy_(tensors[name])
        parameter.requires_grad_(False)
    set_scale(backbone.transformer, scale)
    return card
