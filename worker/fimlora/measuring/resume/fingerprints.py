"""What tells one run from another: its model, its batches, where it computes.

Digests, not contents. A model's weights are sampled: the first, middle and last values of
every parameter and buffer. Another checkpoint, another dtype or a step of training show;
a change to single values elsewhere does not.
"""

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fimlora._version import __version__
from fimlora.measuring.examples.batches import ByExample
from fimlora.model.checkpoint import Checkpoint
from fimlora.model.weight_reader import ALIGNMENT

# Values of each of the three places that are sampled, and bytes where a file is read.
_N_VALUES, _N_BYTES = 32, 64
# What a config says of where it came from, or is seen in the parameters themselves.
_NOT_CONTENT = frozenset({"_name_or_path", "transformers_version", "dtype", "torch_dtype"})
Facts = dict[str, Any]


def describe_model(model: nn.Module, checkpoint: Checkpoint | None = None) -> Facts:
    """Tell a model from others.

    Args:
        model: The model; what is on the meta device counts by name and shape only.
        checkpoint: Where its weights are, if it has none itself.

    Returns:
        Its class, and digests of its config, its parameters' names, shapes and dtypes, of
        the sampled values and of where they begin in memory.
    """
    named = [*model.named_parameters(), *model.named_buffers()]
    shapes = [f"{name} {tuple(t.shape)} {t.dtype}" for name, t in named]
    values = [_sample(tensor) for _, tensor in named if not tensor.is_meta]
    if checkpoint is not None:
        values.extend(_stored_samples(checkpoint))
    return {
        "model class": type(model).__qualname__,
        "model config": digest_list(
            [json.dumps(_config(model), sort_keys=True, default=_plain)]
        ),
        "model parameters": digest_list(shapes),
        "model weights": digest_list(values),
        # Products may round otherwise where a weight begins elsewhere.
        "alignment of the weights": digest_list(
            str(tensor.data_ptr() % ALIGNMENT) for _, tensor in named if not tensor.is_meta
        ),
    }


def describe_place(devices: Iterable[torch.device]) -> Facts:
    """Say where and with what a run computes: elsewhere, products may round otherwise.

    Args:
        devices: Devices of the model.

    Returns:
        Versions, devices, threads, the precision of products and autocast.
    """
    kinds = sorted({_device_name(device) for device in devices})
    transformers = sys.modules.get("transformers")
    return {
        "fimlora version": __version__,
        "torch version": torch.__version__,
        "transformers version": getattr(transformers, "__version__", None),
        "device": ", ".join(kinds),
        "number of threads": torch.get_num_threads(),
        "precision of products": torch.get_float32_matmul_precision(),
        "autocast": ", ".join(_autocasts()),
    }


def digest_batch(batch: Mapping[str, Any]) -> bytes:
    """Digest a calibration batch.

    Args:
        batch: Tensors and other values by name; their order does not count.

    Returns:
        32 bytes; equal for batches of equal names, dtypes, shapes and values.
    """
    digest = hashlib.sha256()
    for name in sorted(batch):
        value = batch[name]
        for item in value if isinstance(value, ByExample) else [value]:
            if isinstance(item, Tensor):
                digest.update(f"{name} {tuple(item.shape)} {item.dtype}\n".encode())
                digest.update(_content(item))
            else:
                digest.update(f"{name} {json.dumps(item, default=_plain)}\n".encode())
    return digest.digest()


def _sample(tensor: Tensor) -> bytes:
    flat = tensor.detach().reshape(-1)
    middle = flat.numel() // 2
    parts = (flat[:_N_VALUES], flat[middle : middle + _N_VALUES], flat[-_N_VALUES:])
    return b"".join(_content(part.cpu().double()) for part in parts)


def _stored_samples(checkpoint: Checkpoint) -> Iterable[bytes]:
    for name in sorted(checkpoint.tensors):
        stored = checkpoint.tensors[name]
        yield f"{name} {stored.shape} {stored.dtype}".encode()
        n_bytes = min(_N_BYTES, stored.n_bytes)
        with stored.file.open("rb") as file:
            for start in (0, stored.n_bytes // 2, stored.n_bytes - n_bytes):
                file.seek(stored.offset + start)
                yield file.read(min(n_bytes, stored.n_bytes - start))


def _config(model: nn.Module) -> Facts:
    """What the model's config and the adapters it carries say."""
    found: Facts = {}
    config: Any = getattr(model, "config", None)
    if hasattr(config, "to_dict"):
        found = {k: v for k, v in config.to_dict().items() if k not in _NOT_CONTENT}
        found["attention"] = getattr(config, "_attn_implementation", None)
    for name, module in model.named_modules():
        if hasattr(module, "active_adapters") and hasattr(module, "scaling"):
            acting = [module.active_adapters, getattr(module, "disable_adapters", False)]
            found[f"adapter of {name}"] = [*acting, module.scaling]
    return found


def _autocasts() -> Iterable[str]:
    """What the caller has torch narrow, on which kind of device."""
    for kind in ("cpu", "cuda"):
        if torch.is_autocast_enabled(kind):
            yield f"{kind} {torch.get_autocast_dtype(kind)}"


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    is_cpu = device.type == "cpu"
    return f"cpu ({torch.backends.cpu.get_cpu_capability()})" if is_cpu else device.type


def digest_list(parts: Iterable[str | bytes]) -> str:
    """Digest a list.

    Args:
        parts: Its entries; their order counts.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
        digest.update(b"\n")
    return digest.hexdigest()


def _content(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


def _plain(value: Any) -> Any:
    """What JSON has no word for; sets have no order of their own."""
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)
