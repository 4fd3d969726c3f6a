"""`report`, and the curves that a training leaves too."""

from pathlib import Path

import click

from model_export.cli.options import FILE, FOLDER
from model_export.report.record import read_record


def draw_curves(run: Path) -> None:
    """Write `curves.png` of what the run folder holds."""
    from model_export.report.charts import write_curves  # noqa: PLC0415  matplotlib imports slowly

    write_curves(read_record(run))


@click.command("report")
@click.argument("run", type=FOLDER)
@click.option("--out", type=FILE, help="File of the page; RUN/report.html by default.")
def report_command(run: Path, out: Path | None) -> None:
    """Write one HTML page about a training or a cross-validation, and its curves.png."""
    from model_export.report.page import REPORT_FILE, write_report  # noqa: PLC0415  others do not wait for it

    draw_curves(run)
    write_report(read_record(run), out or run / REPORT_FILE)
    click.echo(f"written: {out or run / REPORT_FILE}")
