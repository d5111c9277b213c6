"""A model folder, rows and a result as far as the service looks at them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

ROWS = [{"text": f"text {n}", "label": n % 2} for n in range(8)]
CONFIG = {"model_type": "gpt2", "architectures": ["GPT2Model"], "hidden_size": 16}
TOKENIZER = {"model": {"vocab": {"[UNK]": 0, "w1": 1}}, "added_tokens": []}
WEIGHTS = {
    f"encoder.layer.{layer}.{module}.{kind}": shape
    for layer in range(2)
    for module in ("attention.self.query", "attention.self.value", "output.dense")
    for kind, shape in (("weight", (16, 16)), ("bias", (16,)))
}


def make_model(
    folder: Path,
    *,
    config: dict[str, Any] | None = None,
    weights: Mapping[str, tuple[int, ...]] | None = None,
) -> Path:
    """A model folder as far as the service looks: configuration and weight headers."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    shapes = WEIGHTS if weights is None else weights
    save_file(
        {name: np.zeros(shape, np.float32) for name, shape in shapes.items()},
        folder / "model.safetensors",
    )
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    return folder


def as_jsonl(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def commit_result(data_dir: Path) -> dict[str, Any]:
    """A result as a worker commits it."""
    digest = "sha256:" + "ab" * 32
    folder = data_dir / "artifacts" / digest.replace(":", "-")
    folder.mkdir(parents=True, exist_ok=True)
    content = b'{"r": 8}'
    (folder / "adapter_config.json").write_bytes(content)
    (folder / "secret.txt").write_text("not an artefact")
    entries = [
        {"name": name, "digest": f"sha256:{n}", "size": 8, "media_type": "application/json"}
        for n, name in enumerate(["adapter_config.json", "rank_map.json", "secret.txt"])
    ]
    return {
        "digest": digest,
        "adapter_config": {"r": 8},
        "rank_map": {
            "format": "fimlora.rank_map/1", "budget": {"unit": "rank", "value": 8},
            "rule": "proportional", "r_min": 4, "r_max": 16, "scale": 2,
            "spent": {"ranks": 8, "parameters": 64}, "controls": {}, "provenance": {},
            "modules": [],
        },
        "artifacts": entries,
    }  # fmt: skip
