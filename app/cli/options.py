"""Flags made from the settings, so that each is described in one place."""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import click
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from app.pathology.geometry import LEAST_UM_PER_PX, MOST_UM_PER_PX
from app.settings import Settings

MODEL_SETTINGS = ("bundle", "device", "precision", "cores", "max_batch_size")
"""Of every command that runs a model by itself."""
_LINKED = re.compile(r"tcp://.+:\d+")
_OF_A_LINK = "; Kubernetes sets this for a service: enableServiceLinks: false in the pod turns that off"

_S = TypeVar("_S", bound=BaseSettings)


class _BadSetting(click.ClickException):
    """A setting that makes no sense: one line, and the exit code of a usage error."""

    exit_code = click.UsageError.exit_code


class FiniteRange(click.FloatRange):
    """A range of numbers that NaN, which no bound compares with, is outside of too, and so is infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return `value` as a number of the range."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


def setting_options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each of these settings, or for all; their help is the settings' own."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for name, field in reversed(Settings.model_fields.items()):
            if not names or name in names:
                flag = "--" + name.replace("_", "-")
                command = click.option(flag, name, type=_click_type(field), help=field.description)(command)
        return command

    return decorate


def slide_options(max_pixels: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of every command that segments slides.

    Args:
        max_pixels: The help of --max-pixels.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        largest = click.option(
            "--max-pixels", type=click.IntRange(1), default=2**30, show_default=True, help=max_pixels
        )
        spacing = click.option(
            "--um-per-px",
            type=FiniteRange(LEAST_UM_PER_PX, MOST_UM_PER_PX),
            help="Pixel spacing at which the model sees a slide, in um/px; the slide is resampled to it. By default the"
            " model's; if the model or the slide states none, it sees the finest level of at most --max-pixels.",
        )
        return spacing(largest(command))

    return decorate


def _click_type(field: FieldInfo) -> Any:
    optional = [part for part in get_args(field.annotation) if part in (int, Path, str)]
    annotation = optional[0] if optional else field.annotation
    if get_origin(annotation) is Literal:
        return click.Choice(get_args(annotation))
    return click.Path() if annotation is Path else annotation or str  # as text, so that the setting sees an empty one


def settings_of(given: dict[str, Any]) -> Settings:
    """Return the settings of the environment and of the flags that were given, which win."""
    return settings_as(Settings, given, {})


def settings_as(kind: type[_S], given: dict[str, Any], flags: Mapping[str, str]) -> _S:
    """Return settings of another kind in the same way.

    Args:
        kind: Of the settings.
        given: What the flags say, by setting; None where one was not given.
        flags: By setting, those that are not called as it is.
    """
    try:
        return kind(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        flag = flags.get(name, "--" + name.replace("_", "-"))
        where = f"{flag} ({kind.model_config['env_prefix']}{name.upper()}): " if name else ""
        hint = _OF_A_LINK if _LINKED.match(str(first["input"])) else ""
        raise _BadSetting(where + first["msg"].removeprefix("Value error, ") + hint) from error
