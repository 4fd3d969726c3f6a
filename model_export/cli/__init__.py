"""The offline step: `python -m model_export COMMAND`.

python -m model_export train --pairs DATA/pairs --patches DATA/patches --run runs/mine
python -m model_export export --checkpoint runs/mine/best.pth --out bundle --name mine --version 1.0.0
python -m model_export quantize bundle --precision int8 --pairs DATA/pairs
tessera serve --bundle bundle
"""

from typing import Any

import click

from model_export.cli.evaluate import compare, evaluate, robustness
from model_export.cli.export import export, verify_command
from model_export.cli.quantize import quantize
from model_export.cli.report import report_command
from model_export.cli.train import cross_validate_command, train
from model_export.errors import ModelExportError

_INTERRUPTED = 130


class _Commands(click.Group):
    """Turns the project's errors into one line and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ModelExportError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(2)
        except OSError as error:
            if error.filename is None:
                raise
            click.echo(f"error: {error.filename}: {error.strerror}", err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            hint = ": --resume goes on after the last whole epoch" if ctx.invoked_subcommand == "train" else ""
            click.echo(f"interrupted{hint}", err=True)
            ctx.exit(_INTERRUPTED)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
def main() -> None:
    """Train a network, score it, and turn it into a bundle that the service runs."""


for command in (
    train,
    evaluate,
    cross_validate_command,
    compare,
    robustness,
    report_command,
    export,
    verify_command,
    quantize,
):
    main.add_command(command)
