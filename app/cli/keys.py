"""`tessera keys`: API keys for a service that asks for them."""

from pathlib import Path

import click

from app.access.callers import MOST_IMAGES_PER_MINUTE, Caller, Scope
from app.access.keys import add_line, check_name, line_of, new_key
from app.errors import AccessUnusable


@click.group()
def keys() -> None:
    """Make API keys for the file that --keys-file of tessera serve names."""


@keys.command()
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice([scope.value for scope in Scope]),
    default=(Scope.SEGMENT.value,),
    show_default=True,
    help="What the key allows; may be repeated.",
)
@click.option(
    "--rate",
    type=click.IntRange(1, MOST_IMAGES_PER_MINUTE),
    help="Images per minute that the key may send; by default the --rate-limit of the service.",
)
@click.option(
    "--file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File of keys to append the key's line to; without it, the line is printed on standard error.",
)
def new(name: str, scopes: tuple[str, ...], rate: int | None, file: Path | None) -> None:
    """Make a key called NAME and print it once; the file keeps only its digest.

    A running service accepts the key within a second of its line being in the file. To revoke the key, remove the line.
    """
    key = new_key()
    caller = Caller(name, frozenset(map(Scope, scopes)), rate)
    try:
        check_name(name)
        line = line_of(key, caller)
        if file is None:
            click.echo(f"add this line to the file of keys:\n{line}", err=True)
        else:
            add_line(file, line)
    except AccessUnusable as error:
        raise click.ClickException(str(error)) from error
    click.echo(key)
