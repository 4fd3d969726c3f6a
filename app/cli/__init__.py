"""The `tessera` command, a file a subcommand."""

import click

from app.cli.dicomweb import dicomweb
from app.cli.keys import keys
from app.cli.segment import segment
from app.cli.serve import serve
from app.cli.slide import slide
from app.software import software_version


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(software_version(), "-V", "--version", prog_name="tessera")
def main() -> None:
    """Tissue maps of H&E patches. Research use only.

    Every option of serve can also be set by an environment variable: --max-side-px by TESSERA_MAX_SIDE_PX.
    """


main.add_command(serve)
main.add_command(segment)
main.add_command(slide)
main.add_command(dicomweb)
main.add_command(keys)
