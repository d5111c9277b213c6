"""Adapters of a live PEFT model: resized in place, and acting alone for a while.

Symbols: A (r I) and B (O r) are the matrices of a LoRA layer with I input and O output
features; its update of the weight is ``s * B @ A``.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from peft import LoraConfig
from peft.tuners.lora import Embedding as LoraEmbedding
from peft.tuners.lora import LoraLayer
from peft.tuners.lora import layer as lora_layers
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from fimlora.adapter.config import rank_patterns
from fimlora.adapter.resizing import Resized, resize_factors
from fimlora.adapter.stacked import joined, per_expert
from fimlora.errors import InvalidOption, UnsupportedModule
from fimlora.model.compiled import plain_name
from fimlora.model.experts.wrapped import adapted_name
from fimlora.model.targets import base_model_of
from fimlora.numerics.seeded_draws import draw_embedding_b, draw_lora_a
from fimlora.plan import RankPlan, TargetModule

# Of PEFT's: a pair of matrices beside a linear map, quantised or not.
_PLAIN_LAYERS = frozenset({
    "Linear", "Linear4bit", "Linear8bitLt", "TorchaoLoraLinear", "GPTQLoraLinear",
    "AwqLoraLinear", "HqqLoraLinear", "EetqLoraLinear", "AqlmLoraLinear", "Embedding",
})  # fmt: skip
# The others decompose the base weight by rank, so another rank means another base model.
_PLAIN_INITIALISATIONS = (True, False, "eva", "gaussian", "orthogonal")
# LoRA on one parameter of a module, which PEFT has since 0.17.
_ON_PARAMETER: type | None = getattr(lora_layers, "ParamWrapper", None)


@dataclass(frozen=True, slots=True)
class LiveAdapter:
    """A LoRA adapter on a model, seen to be one that can be resized.

    Attributes:
        name: The adapter's name.
        config: Its config, as the model holds it.
        layers: LoRA layer by the name of the module in the base model's tree, or of the
            parameter that fused experts are.
    """

    name: str
    config: LoraConfig
    layers: Mapping[str, LoraLayer]

    @property
    def ranks(self) -> dict[str, int]:
        """Rank by module name."""
        return {name: layer.r[self.name] for name, layer in self.layers.items()}

    @property
    def scales(self) -> dict[str, float]:
        """Effective scale by module name, as PEFT derives it from rank and alpha."""
        return {
            name: layer.lora_alpha[self.name] / self.divisor(layer.r[self.name])
            for name, layer in self.layers.items()
        }

    def matrices(self, name: str) -> tuple[nn.Linear, nn.Linear]:
        """The linear maps that hold A and B of a module."""
        layer: Any = self.layers[name]
        return layer.lora_A[self.name], layer.lora_B[self.name]

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        """A and B of a module, an embedding's too."""
        layer: Any = self.layers[name]
        if isinstance(layer, LoraEmbedding):
            tables: Any = layer
            return tables.lora_embedding_A[self.name], tables.lora_embedding_B[self.name]
        lora_A, lora_B = self.matrices(name)
        return lora_A.weight, lora_B.weight

    def divisor(self, rank: int) -> float:
        """What PEFT divides alpha by: the rank, or its root for rank-stabilised LoRA."""
        return math.sqrt(rank) if self.config.use_rslora else float(rank)


def live_adapter(
    model: nn.Module, adapter_name: str = "default", *, experts: bool = False
) -> LiveAdapter:
    """Find an adapter on a model and see that all of it can be resized.

    Args:
        model: A model that carries LoRA, through `peft.get_peft_model` or transformers.
        adapter_name: The adapter's name.
        experts: Whether it may be on fused experts, too, whose A and B hold those of each, and
            on embeddings.

    Returns:
        The adapter.

    Raises:
        InvalidOption: The model has no LoRA adapter of that name, or it is merged.
        UnsupportedModule: Part of the adapter is of a kind that is not resized exactly.
    """
    configs: Mapping[str, Any] = getattr(model, "peft_config", {})
    config = configs.get(adapter_name)
    if not isinstance(config, LoraConfig):
        raise InvalidOption(
            f"the model has no LoRA adapter {adapter_name!r}; it has: {sorted(configs) or 'none'}"
        )
    if config.init_lora_weights not in _PLAIN_INITIALISATIONS:
        raise UnsupportedModule(
            f"init_lora_weights={config.init_lora_weights!r} changes the base weights by rank; "
            f"ranks can be changed with: {', '.join(map(repr, _PLAIN_INITIALISATIONS))}"
        )
    if getattr(config, "lora_bias", False):  # since PEFT 0.15
        raise UnsupportedModule(
            f"adapter {adapter_name!r} has lora_bias=True: a bias trains beside A and B of every "
            "module, which a plan does not count; make the adapter without"
        )
    found = {
        adapted_name(plain_name(path), module): module
        for path, module in base_model_of(model).named_modules()
        if isinstance(module, LoraLayer) and adapter_name in module.r
    }
    layers = {
        name: _check_layer(name, module, adapter_name, experts=experts)
        for name, module in found.items()
    }
    tables = sorted(n for n, layer in layers.items() if isinstance(layer, LoraEmbedding))
    if tables and getattr(config, "ensure_weight_tying", False):  # since PEFT 0.18
        raise UnsupportedModule(
            f"ensure_weight_tying=True lets another module use the LoRA of {tables[0]}, which keeps a "
            "rank and a scale of its own; make the adapter without"
        )
    return LiveAdapter(adapter_name, config, layers)


def resize_adapter(
    model: nn.Module, plan: RankPlan, adapter_name: str = "default", *, seed: int = 0
) -> None:
    """Give every layer of a live adapter its planned rank, in place.

    A fresh adapter (B = 0) keeps the leading rows of A; new rows are drawn per module, the
    global random state is not touched. A trained one keeps its update when it grows; when
    it shrinks, what the SVD of the update says is least is cut. The effective scale of
    every layer stays, unless the plan has one alpha for all modules: then each gets the scale of
    its rank, and its B is divided by what that multiplies the update by. The adapter's config
    says what the layers are, so ``save_pretrained`` and stock ``PeftModel.from_pretrained`` give
    the same adapter back.

    Optimisers made before hold the old parameters; make them afterwards, or see
    `fimlora.reallocation.resize.resize_with_state`.

    Args:
        model: A model that carries LoRA.
        plan: The plan, for exactly the modules that the adapter is on; those that it lists as
            not targeted stay as they are.
        adapter_name: The adapter's name.
        seed: Seed of new rows of A.

    Raises:
        InvalidOption: The plan is for other modules, or has a rank below 1.
    """  # noqa: DOC502 - `resized_layers` raises
    adapter = live_adapter(model, adapter_name, experts=True)
    # All that can fail happens before anything is changed.
    resized = resized_layers(adapter, plan, seed=seed)
    install_layers(adapter, resized, plan)


def resized_layers(
    adapter: LiveAdapter, plan: RankPlan, *, seed: int = 0
) -> dict[str, Resized]:
    """Make the matrices of every layer at its planned rank; nothing is changed yet.

    Args:
        adapter: The adapter.
        plan: As for `resize_adapter`.
        seed: As for `resize_adapter`.

    Returns:
        New matrices by module name.

    Raises:
        InvalidOption: The plan is for other modules, or has a rank below 1.
    """
    left = plan.not_targeted.keys() & adapter.layers.keys()
    if odd := sorted(plan.ranks.keys() ^ adapter.layers.keys() - left):
        raise InvalidOption(
            f"plan and adapter {adapter.name!r} must cover the same modules; in one only: "
            f"{', '.join(odd[:5])}"
        )
    if low := [name for name, rank in plan.ranks.items() if rank < 1]:
        raise InvalidOption(
            f"{low[0]}: rank {plan.ranks[low[0]]}; a layer of a live adapter has at least 1, so "
            "that a plan that leaves modules out makes an adapter of its own: write_adapter"
        )
    found = {}
    for module in plan.modules:
        A, B = (factor.detach() for factor in adapter.factors(module.name))
        # A prefix of what the module would get at any rank from this seed.
        draw = draw_embedding_b if module.is_embedding else draw_lora_a
        drawn = draw(module, rank=plan.ranks[module.name], seed=seed)
        found[module.name] = _resized(module, A, B, drawn)
    return found


def _resized(module: TargetModule, A: Tensor, B: Tensor, drawn: Tensor) -> Resized:
    """Make the matrices of one layer; of fused experts each one's by themselves."""
    if module.is_embedding:  # B is the random one, and A begins at zero
        turned = resize_factors(B.T, A.T, drawn)
        return replace(turned, A=turned.B.T.contiguous(), B=turned.A.T.contiguous())
    if module.n_experts is None:
        return resize_factors(A, B, drawn)
    pairs = per_expert(A, B, module.n_experts)
    is_alive = [bool(a.any() or b.any()) for a, b in pairs]
    some = [
        # An expert of zeros among others is one that does not train: no row is drawn for it.
        d if alive or not any(is_alive) else d.new_zeros(d.shape)
        for d, alive in zip(drawn.chunk(module.n_experts), is_alive, strict=True)
    ]
    apart = [resize_factors(a, b, d) for (a, b), d in zip(pairs, some, strict=True)]
    stacked = joined([(each.A, each.B) for each in apart])
    kept = sum(each.kept for each in apart)
    return Resized(*stacked, kept, error=max(each.error for each in apart))


def install_layers(
    adapter: LiveAdapter, resized: Mapping[str, Resized], plan: RankPlan
) -> None:
    """Put new matrices into layers, as new parameters, and let the config say what they are.

    Args:
        adapter: The adapter.
        resized: New matrices by module name.
        plan: The plan, which says how alpha follows from rank.
    """
    scales = adapter.scales
    resized = dict(resized)
    if plan.scaling != "constant":
        adapter.config.use_rslora = plan.scaling == "rslora"
        for name, layer in resized.items():
            scale = float(plan.scale_of(name))
            resized[name] = replace(layer, B=layer.B * (scales[name] / scale))
            scales[name] = scale
    for name in adapter.layers:
        if name in resized:
            _install(adapter, name, resized[name].A, resized[name].B, scales[name])
        else:  # the same scale, which another divisor takes another alpha for
            _set_scale(adapter, name, scales[name])
    _update_config(adapter)


def _check_layer(
    name: str, module: LoraLayer, adapter_name: str, *, experts: bool
) -> LoraLayer:
    """See that a layer is a plain pair of matrices, or one of each expert's.

    Returns:
        The layer.

    Raises:
        InvalidOption: The adapter is merged into the base weight.
        UnsupportedModule: It is not a plain LoRA layer on a linear map, or on fused experts.
    """
    is_fused = _ON_PARAMETER is not None and type(module) is _ON_PARAMETER
    if is_fused and not experts:
        raise UnsupportedModule(
            f"{name} holds the matrices of all experts, and nothing but ranks is changed of LoRA "
            "on such parameters; make the adapter without target_parameters"
        )
    if isinstance(module, LoraEmbedding) and not experts:
        raise UnsupportedModule(
            f"{name} is an embedding, and nothing but ranks is changed of LoRA on one; make the "
            "adapter without"
        )
    kind, where = type(module).__name__, type(module).__module__
    is_plain = kind in _PLAIN_LAYERS and where.startswith("peft.tuners.lora.")
    if not is_plain and not is_fused:
        raise UnsupportedModule(
            f"{name} is a {where}.{kind}; only LoRA on linear maps, plain or quantised, and on "
            "embeddings can be resized"
        )
    variants = getattr(module, "lora_variant", {})  # since PEFT 0.16
    if adapter_name in variants or module.use_dora.get(adapter_name):
        raise UnsupportedModule(
            f"{name} uses DoRA or another LoRA variant; only plain LoRA can"
        )
    if adapter_name in module.merged_adapters:
        raise InvalidOption(f"adapter {adapter_name!r} is merged; call unmerge_adapter() first")
    return module


def _install(adapter: LiveAdapter, name: str, A: Tensor, B: Tensor, scale: float) -> None:
    """Put new matrices into a layer, and everything that PEFT derives from their rank."""
    layer: Any = adapter.layers[name]
    if isinstance(layer, LoraEmbedding):
        for held, factor in ((layer.lora_embedding_A, A), (layer.lora_embedding_B, B)):
            trains = held[adapter.name].requires_grad
            held[adapter.name] = nn.Parameter(factor, requires_grad=trains)
        layer.r[adapter.name] = len(A)
        _set_scale(adapter, name, scale)
        return
    lora_A, lora_B = adapter.matrices(name)
    n_experts: int = getattr(layer, "num_experts", 1)
    lora_A.weight = nn.Parameter(A, requires_grad=lora_A.weight.requires_grad)
    lora_B.weight = nn.Parameter(B, requires_grad=lora_B.weight.requires_grad)
    lora_A.out_features = lora_B.in_features = len(A)
    layer.r[adapter.name] = len(A) // n_experts
    _set_scale(adapter, name, scale)


def _set_scale(adapter: LiveAdapter, name: str, scale: float) -> None:
    """Give a layer the alpha that makes its effective scale."""
    layer = adapter.layers[name]
    divisor = adapter.divisor(layer.r[adapter.name])
    alpha = scale * divisor
    nearest = round(alpha)
    # An integer where it is one but for rounding: some readers take no other.
    alpha = nearest if math.isclose(alpha, nearest, rel_tol=1e-12) else alpha
    layer.lora_alpha[adapter.name] = alpha
    layer.scaling[adapter.name] = alpha / divisor


def _update_config(adapter: LiveAdapter) -> None:
    """Let the config say what the layers are."""
    ranks = adapter.ranks
    alphas = {name: layer.lora_alpha[adapter.name] for name, layer in adapter.layers.items()}
    config = adapter.config
    widest = max(sorted(ranks), key=ranks.__getitem__)
    config.r, config.lora_alpha = ranks[widest], alphas[widest]
    config.rank_pattern, config.alpha_pattern = rank_patterns(ranks, alphas)


# Not through set_adapter(): that also decides which parameters train.
_STATE = ("_active_adapter", "_disable_adapters")


@contextmanager
def acting_alone(model: nn.Module, adapter_name: str) -> Iterator[None]:
    """Activate one adapter and no other inside the block; put everything back after it.

    Modules that PEFT trains in full, such as a classification head, follow the adapter;
    where it has none of its own the base model's acts.

    Args:
        model: A model that carries adapters.
        adapter_name: Name of the one to activate, also where adapters are disabled.

    Yields:
        None. What was active, or disabled, is so again when the block ends, also when it
        raises.

    Raises:
        InvalidOption: An adapter is merged into base weights, so it acts whatever is active.
    """
    switches = [
        module
        for module in model.modules()
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)
    ]
    if merged := sorted({name for module in switches for name in module.merged_adapters}):
        raise InvalidOption(f"adapter {merged[0]!r} is merged; call unmerge_adapter() first")
    before = [(module, name, getattr(module, name)) for module in switches for name in _STATE]
    try:
        for module in switches:
            vars(module).update(_active_adapter=adapter_name, _disable_adapters=False)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
