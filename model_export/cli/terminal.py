"""What trainings and scorings tell on a terminal."""

import sys
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import click

from model_export.training.hardware import Hardware


class Terminal:
    """Progress on a terminal: a bar for an epoch's steps, a line for each phase; of several processes one talks."""

    def __init__(self, hardware: Hardware) -> None:
        self._talks = hardware.first

    def bar(self, steps: Iterable[int], title: str) -> AbstractContextManager[Iterable[int]]:
        """Show a bar, unless the output is no terminal."""
        return click.progressbar(steps, label=title, hidden=not (self._talks and sys.stdout.isatty()))

    def line(self, text: str) -> None:
        """Write a line."""
        if self._talks:
            click.echo(text)


def show_scores(scores: Mapping[str, float]) -> None:
    """Write a line for each score."""
    for name, value in scores.items():
        click.echo(f"{name:25} {value:.4f}")


def show_summary(summary: Mapping[str, Any]) -> None:
    """Write what `evaluate.summarise` made of a cross-validation."""
    for name, value in summary["pooled"].items():
        sd = summary["sd"][name]
        spread = f"{summary['mean'][name]:.4f} +- {'-' if sd is None else f'{sd:.4f}'}"
        click.echo(f"{name:25} {value:.4f}   {summary['count'][name]} folds {spread}")
    after, labels = summary["calibrated"], summary["labels"]
    click.echo("chosen on all folds, and judged on each fold as the others choose:")
    click.echo(f"temperature {after['temperature']:.3f}: ece {after['ece']:.4f}")
    for name, threshold, value in zip(labels["classes"], labels["thresholds"], labels["f1"], strict=True):
        click.echo(f"threshold of {name} {threshold:.3f}: f1 {'-' if value is None else f'{value:.4f}'}")
