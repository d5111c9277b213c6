"""The base model of a job: loaded if it is to be resident, else only its outline and its head.

Streaming builds the model from its folder by itself; it must be the model that `load_model`
would load, down to a head that is drawn.
"""

import gc
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fimlora.adapter.config import modules_in_full
from fimlora.measuring.executors import shortage
from fimlora.measuring.head.last_linear import candidates
from fimlora.memory.need import MemoryNeed, estimate_need
from fimlora.model.checkpoint import Checkpoint
from fimlora.model.drawn import drawn_modules
from fimlora.model.loading import experts_per_token
from fimlora.model.saved_whole import SavedModule, find_saved
from fimlora.model.skeleton import build_skeleton
from fimlora.model.targets import head_tensors
from fimlora.model.weight_reader import find_in, open_weights
from fimlora.statistics.options import Passes
from fimlora.whole_names import inside_saved, outermost
from fimlora_worker.inputs.heads import (
    HEAD_SEED,
    ModelRequest,
    check_complete,
    config_for_head,
    head_class,
    named_architecture_errors,
    other_class,
)
from fimlora_worker.inputs.model_cache import ModelCache
from fimlora_worker.inputs.models import LoadedModel, load_model, weight_bytes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Builder:
    """Builds a model without weights, as `load_model` leaves it; a model class to streaming."""

    model_class: Any
    pad_token_id: int | None

    def from_config(self, config: Any, **options: Any) -> nn.Module:
        """What transformers' own method of this name does, and the padding of the tokenizer."""
        model: nn.Module = self.model_class.from_config(config, **options)
        # Set afterwards, as on a loaded model: it decides more while a model is built.
        set_padding(model.config, self.pad_token_id)
        return model


def _as_fitted(weights: dict[str, Tensor], fitted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return weights | {name: w.to(weights[name].dtype) for name, w in fitted.items()}


def set_padding(config: Any, pad_token_id: int | None) -> None:
    """Say which token is padding, also where a classifier of a model with parts looks.

    Nothing is said where it is not known yet; some configurations refuse to have none.
    """
    if pad_token_id is None:
        return
    config.pad_token_id = pad_token_id
    config.get_text_config().pad_token_id = pad_token_id


@dataclass(frozen=True)
class BaseModel:
    """A base model in a folder, and how a job wants it.

    Attributes:
        folder: Its files.
        config: Its configuration, as the folder has it.
        request: Head, dtype and device.
        pad_token_id: Fills up examples.
        cache: Models that stay loaded between jobs.
        modules_to_save: What is trained whole besides, as the request names it.
    """

    folder: Path
    config: Any
    request: ModelRequest
    pad_token_id: int | None
    cache: ModelCache
    modules_to_save: tuple[str, ...] | None = None

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return torch.device(self.request.device)

    def load(self) -> nn.Module:
        """The whole model, in memory; it stays there for later jobs."""
        model: nn.Module = self._loaded().model
        set_padding(model.config, self.pad_token_id)
        return model

    def unload(self) -> None:
        """Let go of it, for memory."""
        self.cache.drop(self.request)
        self._free_memory()

    def need(
        self, *, n_tokens: int, recorded_bytes: int = 0, passes: Passes = Passes.BACKWARD
    ) -> MemoryNeed:
        """What it needs besides what it has; models of earlier jobs make room for it."""
        need = estimate_need(
            Checkpoint(self.folder).tensors,
            itemsize=self._dtype.itemsize,
            n_tokens=n_tokens,
            experts_per_token=experts_per_token(self.config),
            recorded_bytes=recorded_bytes,
            passes=passes,
        )
        if self.request in self.cache:
            return replace(need, weight_bytes=0, converted_bytes=0)
        if len(self.cache) and shortage(need, self.device):
            self.cache.clear()
            self._free_memory()
        return need

    def outline(self) -> nn.Module:
        """Its modules by name and shape, with weights or without."""
        return self.load() if self.request in self.cache else self.skeleton

    @property
    def drawn(self) -> frozenset[str]:
        """Names of the modules with weights that the checkpoint lacks; they are no targets."""
        if self.request in self.cache:
            return self._loaded().drawn
        return drawn_modules(self.skeleton, self._missing)

    @property
    def has_drawn_head(self) -> bool:
        """Whether a last linear map of its task is drawn; never with a language model's head."""
        if not self.request.n_outputs or not self.drawn:
            return False
        return any(linear.name in self.drawn for linear in candidates(self.outline()))

    def head_names(self) -> tuple[str, ...]:
        """Names of the parameters that are trained in full for the task."""
        if not self.request.n_outputs:
            return ()
        return tuple(head_tensors(self.outline(), drawn=self.drawn))

    @cached_property
    def saved(self) -> tuple[SavedModule, ...]:
        """Modules that the request has trained whole, beside what the task has."""
        return find_saved(self.outline(), self.modules_to_save)

    def whole_modules(self) -> list[str]:
        """Names of all modules that are trained whole, for the task or for the request."""
        return outermost(
            [*modules_in_full(self.head_names()), *(each.name for each in self.saved)]
        )

    def head(self, fitted: Mapping[str, Tensor] = {}) -> dict[str, Tensor]:
        """The parameters that are trained in full for the task, some as they were fitted."""
        return _as_fitted(self._weights(self.head_names()), fitted)

    def whole_weights(self, fitted: Mapping[str, Tensor] = {}) -> dict[str, Tensor]:
        """All parameters that are trained in full, some of them as they were fitted for a job."""
        parameters = dict(self.outline().named_parameters(remove_duplicate=False))
        names = inside_saved(parameters, [each.name for each in self.saved])
        wanted = {*self.head_names(), *names}
        return _as_fitted(self._weights([n for n in parameters if n in wanted]), fitted)

    def _weights(self, names: Sequence[str]) -> dict[str, Tensor]:
        if self.request in self.cache:
            loaded = self.load()
            return {name: loaded.get_parameter(name).detach() for name in names}
        model = self.skeleton
        reader = open_weights(
            model, Checkpoint(self.folder), seed=HEAD_SEED, redraws=bool(self.request.n_outputs)
        )
        wanted = {name: model.get_parameter(name) for name in names}
        return reader.read_whole(wanted, torch.device("cpu"))

    @cached_property
    def skeleton(self) -> nn.Module:
        """The model without weights.

        Raises:
            UnsupportedArchitecture: It has no such head.
            InvalidCheckpoint: Its checkpoint lacks weights, or has some of another model.
        """
        with named_architecture_errors(self.config):
            model = build_skeleton(
                self.folder,
                model_class=self._builder,
                config=config_for_head(self.folder, self.request),
                dtype=self._dtype,
            )
        self._find_missing(model)
        return model

    def other_skeleton(self) -> nn.Module | None:
        """What its checkpoint is as another class, without weights, if there is one."""
        other = other_class(self.config, self.outline())
        if other is None:
            return None
        model_class, config = other
        try:
            return build_skeleton(
                self.folder, model_class=model_class, config=config, dtype=self._dtype
            )
        except (ImportError, ValueError, AttributeError) as error:  # it may need more packages
            log.info(
                "model.other_class",
                extra={"model_class": model_class.__name__, "error": str(error)},
            )
            return None

    @cached_property
    def _missing(self) -> tuple[str, ...]:
        return self._find_missing(self.skeleton)

    def streaming_options(self) -> dict[str, Any]:
        """What `fimlora.measure_streamed` needs to build this very model."""
        return {
            "model_class": self._builder,
            "config": config_for_head(self.folder, self.request),
            "dtype": self._dtype,
            "device": self.device,
            "weights_seed": HEAD_SEED,
            "ignore_mismatched_sizes": bool(self.request.n_outputs),
        }

    def _loaded(self) -> LoadedModel:
        loaded: LoadedModel = self.cache.get(
            self.request,
            size=weight_bytes(self.folder),
            load=lambda: load_model(self.folder, self.config, self.request),
        )
        return loaded

    def _free_memory(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.request.dtype)
        return dtype

    @property
    def _builder(self) -> Builder:
        return Builder(head_class(self.config, self.request.task), self.pad_token_id)

    def _find_missing(self, model: nn.Module) -> tuple[str, ...]:
        """Weights that the checkpoint lacks, and may lack."""
        redraws = bool(self.request.n_outputs)
        missing = find_in(Checkpoint(self.folder), model, redraws=redraws).missing
        check_complete(model, missing, self.request)
        return missing
