"""Small trained adapters made of NumPy alone, and how they are sent."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TAR = {"Content-Type": "application/x-tar"}
NAMES = tuple(f"layers.{i}.{kind}" for i in range(3) for kind in ("q_proj", "up_proj"))


def config_of(**fields: Any) -> dict[str, Any]:
    return {
        "peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"],
        "base_model_name_or_path": "org/model", "task_type": "CAUSAL_LM",
    } | fields  # fmt: skip


def tensors_of(rank: int = 4, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Six modules, each used less than the one before it."""
    rng, tensors = np.random.default_rng(seed), {}
    for number, name in enumerate(NAMES):
        d_out = 24 if name.endswith("q_proj") else 40
        fading = (0.5**number) ** np.arange(rank)
        key = f"base_model.model.{name}.lora_"
        tensors[f"{key}A.weight"] = rng.normal(size=(rank, 24)).astype(np.float32)
        tensors[f"{key}B.weight"] = (rng.normal(size=(d_out, rank)) * fading).astype(np.float32)
    return tensors


def files_of(
    config: dict[str, Any] | None = None, tensors: dict[str, np.ndarray] | None = None
) -> dict[str, bytes]:
    return {
        CONFIG: json.dumps(config or config_of()).encode(),
        WEIGHTS: save(tensors or tensors_of()),
    }


def write_adapter_files(folder: Path, **options: Any) -> Path:
    folder.mkdir(parents=True)
    for name, content in files_of(**options).items():
        (folder / name).write_bytes(content)
    return folder


def as_tar(files: dict[str, bytes], *, format: int = tarfile.USTAR_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()
