"""No pipe, device or socket is ever opened as if it were a file of a model.

Opening a pipe waits for whoever writes to it, for ever; a device may never end.
"""

from pathlib import Path

from fimlora_jobs.models.refusal import ModelRefused

FOLDERS = (".", "additional_chat_templates")  # where transformers looks


def check_no_special_files(folder: Path) -> None:
    """Refuse a folder with an entry that is neither a file nor a folder; links are followed.

    Raises:
        ModelRefused: Names it.
    """
    for name in FOLDERS:
        inner = folder / name
        if not inner.is_dir():
            continue
        for path in sorted(inner.iterdir()):
            if path.exists() and not path.is_file() and not path.is_dir():
                raise ModelRefused(
                    f"{path.name} is a pipe, a device or a socket; a model consists of files"
                )
