"""``fimlora report``: what a job found, as a page or a picture to hand on."""

from pathlib import Path
from typing import Annotated

import typer

from fimlora_client.cli.common.console import say
from fimlora_client.cli.common.context import client_of
from fimlora_client.files import write_bytes

KINDS = (".html", ".png")


def report(
    ctx: typer.Context,
    job_id: Annotated[
        str, typer.Argument(metavar="JOB", help="Id of a job, job_...", show_default=False)
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="File to write: .html for the report, .png for the rank map."
        ),
    ] = Path("report.html"),
) -> None:
    """Write what a calibration or an evaluation found as a page, or a rank map as a picture.

    The page needs neither scripts nor a network: send it, print it, keep it. A file of that
    name is replaced.

    [bold]Examples[/bold]

      fimlora report job_... --output report.html
      fimlora report job_... --output rank_map.png
    """
    kind = output.suffix.lower()
    if kind not in KINDS:
        raise typer.BadParameter(
            f"--output {str(output)!r}: its ending says what to write, {' or '.join(KINDS)}"
        )
    jobs = client_of(ctx).jobs
    drawn = jobs.rank_map_png(job_id) if kind == ".png" else jobs.report(job_id).encode()
    write_bytes(output.expanduser(), drawn)
    say(("✓ ", "green"), str(output))
