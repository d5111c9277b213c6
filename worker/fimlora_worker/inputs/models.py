"""Find a base model's files and load them with the head that the task needs.

Models are loaded from the absolute path of a registered folder or of a snapshot, never by
name: a name would also open a folder of that name in the current one.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from fimlora_jobs.datasets.folders import (
    UNWANTED,
    WANTED,
    FolderDigests,
    FolderError,
    model_files,
)
from fimlora_worker.errors import ModelMissing, UnsafeWeights, UnsupportedArchitecture
from fimlora_worker.inputs.heads import (
    HEAD_SEED,
    ModelRequest,
    check_complete,
    config_for_head,
    head_class,
    named_architecture_errors,
)
from fimlora_worker.inputs.model_checks import check_model_files, read_raw_config
from fimlora_worker.inputs.model_faults import is_of_machine, named_as, sentence_of
from fimlora_worker.settings import Settings

log = logging.getLogger(__name__)
UNUSABLE = "the config.json of the model cannot be used"


@dataclass(frozen=True)
class LoadedModel:
    """A base model with its head, ready to be measured.

    Attributes:
        drawn: Names of the modules with weights that its checkpoint lacks.
    """

    model: Any
    config: Any
    drawn: frozenset[str]


def find_model(
    reference: Mapping[str, Any], settings: Settings, digests: FolderDigests
) -> Path:
    """Folder of the registered base model that a job was accepted with.

    Raises:
        ModelMissing: It is not there any more, or has changed since.
    """
    name = str(reference["name"])
    folder = settings.models_dir / name
    try:
        digest = digests.of_model(folder)
    except FolderError as error:
        raise ModelMissing(str(error)) from error
    if digest != reference["digest"]:
        raise ModelMissing(
            f"model {name!r} has changed since the job was accepted; submit it again"
        )
    return folder.resolve()


def download_model(reference: Mapping[str, Any], settings: Settings) -> Path:
    """Snapshot of a hub model at the commit that a job was accepted with."""
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            str(reference["id"]),
            revision=str(reference["revision"]),
            cache_dir=settings.hub_dir / "models",
            allow_patterns=list(WANTED),
            ignore_patterns=list(UNWANTED),
        )
    ).absolute()


def weight_bytes(folder: Path) -> int:
    """Size of the weights.

    Raises:
        UnsafeWeights: There are none in safetensors.
    """
    files = [path for path in folder.glob("*.safetensors") if path.is_file()]
    if not files:
        raise UnsafeWeights(f"the model has no *.safetensors file, only {_names(folder)}")
    return sum(path.stat().st_size for path in files)


def read_config(folder: Path) -> Any:
    """The model's configuration.

    Raises:
        UnsupportedArchitecture: It is no model, or it wants to run code of its own.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    try:
        names = model_files(folder)
    except FolderError as error:
        raise UnsupportedArchitecture(str(error)) from error
    if "adapter_config.json" in names:
        raise UnsupportedArchitecture(
            "this is an adapter (it has adapter_config.json); give its base model instead"
        )
    raw = read_raw_config(folder)
    if raw.get("auto_map") and raw.get("model_type") not in CONFIG_MAPPING:
        raise UnsupportedArchitecture(
            "the model brings code of its own (auto_map in config.json), which is never run, and "
            f"transformers has no model type {raw.get('model_type')!r}"
        )
    check_model_files(folder, raw)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except StrictDataclassError as error:
        raise UnsupportedArchitecture(f"{UNUSABLE}: {sentence_of(error)}") from error
    except (ValueError, KeyError) as error:
        if raw.get("model_type") not in CONFIG_MAPPING:
            message = f"transformers has no model type {raw.get('model_type')!r}"
            raise UnsupportedArchitecture(message) from error
        raise UnsupportedArchitecture(f"{UNUSABLE}: {sentence_of(error)}") from error
    except Exception as error:
        if is_of_machine(error):
            raise
        raise UnsupportedArchitecture(f"{UNUSABLE}: {sentence_of(error)}") from error


def load_model(folder: Path, config: Any, request: ModelRequest) -> LoadedModel:
    """Load weights and head.

    Raises:
        UnsupportedArchitecture: The architecture has no such head, or cannot be loaded.
    """
    import torch
    import transformers

    from fimlora.model.loading import load
    from fimlora.model.skeleton import build_skeleton

    log.info("model.load", extra={"digest": request.digest, "task": request.task})
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with named_architecture_errors(config):
        skeleton = build_skeleton(
            folder,
            model_class=head_class(config, request.task),
            config=config_for_head(folder, request),
            dtype=getattr(torch, request.dtype),
        )
        # A head trained for other labels is no use.
        loaded = load(skeleton, folder, seed=HEAD_SEED, redraws=bool(request.n_outputs))
    check_complete(skeleton, loaded.missing, request)
    return LoadedModel(loaded.model.to(request.device), config, loaded.drawn)


def load_tokenizer(folder: Path) -> Any:
    """The model's tokenizer, padding on the right.

    Raises:
        UnsupportedArchitecture: The model has none, or its own code fails.
    """
    from transformers import AutoTokenizer

    with named_as("the model's tokenizer cannot be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    return prepared_tokenizer(tokenizer)


def prepared_tokenizer(tokenizer: Any) -> Any:
    """The tokenizer, padding on the right.

    Raises:
        UnsupportedArchitecture: Its own code fails, or it has no sound limit.
    """
    with named_as("the model's tokenizer cannot be loaded"):
        tokenizer.padding_side = "right"
        if tokenizer.pad_token_id is None:  # decoders are often trained without
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    longest = tokenizer.model_max_length
    if not isinstance(longest, int | float) or not longest > 0:
        raise UnsupportedArchitecture(
            f"the model's tokenizer has model_max_length={longest!r}; allowed is a number of tokens"
        )
    return tokenizer


def longest_input(wanted: int, tokenizer: Any, config: Any, n_positions: int | None) -> int:
    """Tokens per example: as asked for, but never more than the model has positions.

    Args:
        wanted: As asked for.
        tokenizer: It may know of a limit.
        config: It states one for positions that no table ends.
        n_positions: How many a table has, if there is one.
    """
    stated = getattr(config.get_text_config(), "max_position_embeddings", None) or 0
    most = n_positions or (stated if stated > 0 else wanted)  # XLNet says -1 for no limit
    return int(min(wanted, tokenizer.model_max_length, most))


def padding_id(tokenizer: Any, n_ids: int | None) -> int:
    """Token that fills up examples: the tokenizer's, if the model has an embedding of it.

    It is masked, so that another token does as well where a tokenizer has got one that the
    model was never given.
    """
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    return next((i for i in known if i is not None and (n_ids is None or i < n_ids)), 0)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())[:20]
