"""No pipe, device or socket is ever opened as if it were a file of a model.

Opening a pipe waits for whoever writes to it, for ever; a device may never end.
"""

from pathlib import Path

from fimlora_jobs.models.refusal import ModelRefused

TEMPLATES = "additional_chat_templates"
FOLDERS = (".", TEMPLATES)  # where transformers looks


def check_no_special_files(folder: Path) -> None:
    """Refuse a folder with an entry that is neither a file nor a folder; links are followed.

    A link that leads nowhere is nothing, but for where every entry is read.

    Raises:
        ModelRefused: Names it.
    """
    for name in FOLDERS:
        inner = folder / name
        for path in sorted(inner.iterdir()) if inner.is_dir() else ():
            is_something = path.exists() or name == TEMPLATES
            if is_something and not path.is_file() and not path.is_dir():
                raise ModelRefused(
                    f"{path.name} is a pipe, a device, a socket or a link to nothing; a model "
                    "consists of files"
                )
