"""`tessera keys`: API keys for a service that asks for them."""

from pathlib import Path

import click

from app.access.callers import MOST_IMAGES_PER_MINUTE, Caller, Scope
from app.access.keys import add_line, check_name, line_of, new_key
from app.errors import AccessUnusable


@click.group()
def keys() -> None:
    """Make API keys, for the file that --keys-file of serve names."""


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
    help="Images a minute; by default what --rate-limit of serve says.",
)
@click.option(
    "--file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File of keys to append the line to; by default it is printed, on standard error.",
)
def new(name: str, scopes: tuple[str, ...], rate: int | None, file: Path | None) -> None:
    """Make a key called NAME and print it, once: only its digest is kept.

    A running service takes it within a second. To revoke it, take its line out of the file.
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
