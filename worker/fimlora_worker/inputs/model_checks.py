"""What a model's files tell against it, asked again before any of it is built.

The service asks the same of what it can see; of a model on the hub that is less.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fimlora.model.packed_parts import UnreadablePacking
from fimlora.model.quantised_files import check_quantised, logical_shapes, tensor_reader
from fimlora.model.safetensors_header import TensorEntry, read_header
from fimlora_jobs.datasets.folders import sizes_in
from fimlora_jobs.models.code_fields import check_no_code
from fimlora_jobs.models.config_kinds import check_kinds
from fimlora_jobs.models.config_numbers import check_numbers
from fimlora_jobs.models.file_sizes import check_file_sizes
from fimlora_jobs.models.refusal import ModelRefused
from fimlora_jobs.models.shards import check_number_of_shards, check_shard_names, check_shards
from fimlora_jobs.models.special_files import check_no_special_files
from fimlora_jobs.models.tokenizer_files import check_tokenizer, check_tokenizer_names
from fimlora_jobs.models.weights_fit import check_weights_fit
from fimlora_worker.errors import UnsafeWeights, UnsupportedArchitecture


def read_raw_config(folder: Path) -> dict[str, Any]:
    """The content of ``config.json``, of a folder that holds nothing but files.

    Raises:
        UnsupportedArchitecture: It is no object, or no JSON, or something in the folder is no file.
    """
    try:
        check_no_special_files(folder)
        check_file_sizes(sizes_in(folder))
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ModelRefused as error:
        raise _refusal(error) from error
    except (ValueError, RecursionError) as error:
        raise UnsupportedArchitecture("the config.json of the model is not JSON") from error
    if not isinstance(config, dict):
        raise UnsupportedArchitecture("the config.json of the model is not an object")
    return config


def check_model_files(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a model that is packed in a way that is not read, absurd, or composed of files that do not belong together.

    Raises:
        UnsupportedArchitecture: Says what is wrong.
        UnsafeWeights: A file of its weights is damaged.
    """
    names = {path.name for path in folder.iterdir()}
    try:
        check_number_of_shards([name for name in names if name.endswith(".safetensors")])
        check_quantised(config, names=names)
        check_no_code(config)
        entries = read_entries(folder)
        stored = {name: (entry.dtype, entry.shape) for name, entry in entries.items()}
        shapes = logical_shapes(config, stored, tensor_reader(folder))
        check_numbers(config, n_tensors=len(entries))
        check_kinds(config)
        check_shard_names(names)
        check_shards(folder)
        check_weights_fit(config, shapes)
        check_tokenizer_names(names, config)
        check_tokenizer(folder, config, shapes)
    except (ModelRefused, UnreadablePacking) as error:
        raise _refusal(error) from error


def read_entries(folder: Path) -> dict[str, TensorEntry]:
    """What the headers of the weights' files say.

    Raises:
        UnsafeWeights: One of them is damaged.
    """
    entries: dict[str, TensorEntry] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            # Not by safetensors: it maps the whole file, which counts against a memory limit.
            with file.open("rb") as opened:
                entries |= read_header(opened).tensors
        except (OSError, ValueError) as error:
            raise UnsafeWeights(f"{file.name} is not a sound safetensors file") from error
    return entries


def _refusal(error: ModelRefused | UnreadablePacking) -> UnsupportedArchitecture:
    return UnsupportedArchitecture(f"the model cannot be calibrated: {error}")
