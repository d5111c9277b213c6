"""``fimlora report``: what a job found, as a page or a picture to hand on."""

from pathlib import Path
from typing import Annotated

import typer

from fimlora_client.blocking.client import Client
from fimlora_client.cli.common.console import say
from fimlora_client.cli.common.context import client_of
from fimlora_client.files import write_bytes

KINDS = (".html", ".png", ".svg")


def report(
    ctx: typer.Context,
    job_id: Annotated[
        str, typer.Argument(metavar="JOB", help="Id of a job, job_...", show_default=False)
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="File to write: .html for the report, .png or .svg for the rank map.",
        ),
    ] = Path("report.html"),
) -> None:
    """Write what a calibration or an evaluation found as a page, or a rank map as a picture.

    The page needs neither scripts nor a network: send it, print it, keep it. Pictures name
    model, data and day; the rank_map.svg of a fetched folder has no day, as it is kept by its
    content. A file of that name is replaced.

    [bold]Examples[/bold]

      fimlora report job_... --output report.html
      fimlora report job_... --output rank_map.png
      fimlora report job_... --output rank_map-dated.svg
    """
    kind = output.suffix.lower()
    if kind not in KINDS:
        raise typer.BadParameter(
            f"--output {str(output)!r}: its ending says what to write, one of {', '.join(KINDS)}"
        )
    write_bytes(output.expanduser(), _drawn(client_of(ctx), job_id, kind))
    say(("✓ ", "green"), str(output))


def _drawn(client: Client, job_id: str, kind: str) -> bytes:
    """The page or the picture, as the ending of its file has it."""
    if kind == ".png":
        return client.jobs.rank_map_png(job_id)
    text = client.jobs.rank_map_svg if kind == ".svg" else client.jobs.report
    return text(job_id).encode()
