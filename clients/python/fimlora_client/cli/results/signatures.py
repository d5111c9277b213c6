"""``fimlora verify-signature``: whether a folder is what somebody has signed, without a service."""

from pathlib import Path
from typing import Annotated

import typer

from fimlora_client.cli.common.console import print_plain, say
from fimlora_client.signatures import verify_folder


def verify_signature(
    folder: Annotated[Path, typer.Argument(help="Files of a result, model.sig among them.")],
    public_key: Annotated[
        list[Path],
        typer.Option(help="A key in PEM that may have signed it; again for others."),
    ],
) -> None:
    """Verify that a folder is a signed result: nothing missing, changed or more.

    Prints the digest of the result. Needs no service.

    [bold]Example[/bold]

      fimlora verify-signature adapter --public-key signing.pub
    """
    keys = [path.expanduser() for path in public_key]
    signed = verify_folder(folder.expanduser(), keys)
    say(("✓ ", "green"), f"all {len(signed.files)} files are signed, and no other is there")
    print_plain(signed.result)
