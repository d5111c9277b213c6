"""What of a folder is a model, and its digest: service, worker and command line agree on both."""

from pathlib import Path

from fimlora_contract.digests import digest_file, digest_of

# What a model is loaded from: configuration, weights, tokenizer, chat template.
MODEL_SUFFIXES = (
    ".json", ".safetensors", ".txt", ".jinja",
    ".model", ".spm", ".tiktoken", ".bpe", ".codes",
)  # fmt: skip


def model_digest(folder: Path) -> str:
    """Digest of a model's files under their names; subfolders are not part of a model."""
    files = (path for path in folder.iterdir() if path.suffix in MODEL_SUFFIXES)
    return digest_of({path.name: digest_file(path) for path in files if path.is_file()})
