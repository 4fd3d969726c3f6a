"""What bundles cost: processor time of one thread for a patch, each against the first.

    python -m benchmarks.bundle_cost OTHER app/bundle

Bundles take turns, so that a noisy machine is noisy for all of them, and a thread's own processor time is taken, which
does not count the time that other programs run.
"""

import statistics
import time
from pathlib import Path

import click
import numpy as np

from app.inference.bundle import load_bundle
from app.inference.session import OnnxSession, open_session
from app.pathology.geometry import Size
from model_export.synthetic import draw_patch

_WARM_UP = 5
"""The first runs of a session allocate."""


@click.command()
@click.argument("bundles", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--side", "side_px", default=224, type=click.IntRange(32), help="Side of the patch, px.")
@click.option("--rounds", default=200, type=click.IntRange(1), help="Runs of each bundle.")
def main(bundles: tuple[Path, ...], side_px: int, rounds: int) -> None:
    """Time BUNDLES on one drawn patch, each in turn; a ratio is of medians within this run."""
    sessions = {bundle: open_session(load_bundle(bundle).model, "cpu") for bundle in bundles}
    image = draw_patch(0, Size(side_px, side_px))[0][None]
    spent: dict[Path, list[float]] = {bundle: [] for bundle in bundles}
    for index in range(_WARM_UP + rounds):
        for bundle, session in sessions.items():
            milliseconds = _spent(session, image)
            if index >= _WARM_UP:
                spent[bundle].append(milliseconds)
    first = statistics.median(spent[bundles[0]])
    for bundle in bundles:
        median = statistics.median(spent[bundle])
        click.echo(f"{bundle}: {median:.2f} ms of processor time, x {median / first:.2f}")


def _spent(session: OnnxSession, image: np.ndarray) -> float:
    start = time.thread_time()
    session.run(image)
    return 1000 * (time.thread_time() - start)


if __name__ == "__main__":
    main()
