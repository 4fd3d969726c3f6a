"""What a request states beside its images: of them in the query, and how long it waits in a header."""

import math
import re
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
)
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError

from app.api.problems import InvalidRequest
from app.pathology.geometry import LEAST_UM_PER_PX, MOST_UM_PER_PX

TIMEOUT_HEADER = "X-Request-Timeout"
_S = TypeVar("_S", bound="Stated")
_SECONDS = re.compile(r"([0-9]+(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]{1,3})?", re.IGNORECASE)
"""Python reads more as a number: 1_0 as ten, and the digits of any script."""

_TIMEOUT = {
    "name": TIMEOUT_HEADER,
    "in": "header",
    "required": False,
    "description": "Seconds after which the answer is of no use; the request then gets 504, or 408 if its body had not"
    " arrived. Can only lower the service's own limit, TESSERA_REQUEST_TIMEOUT.",
    "schema": {"type": "number", "exclusiveMinimum": 0},
}


class Stated(BaseModel):
    """What a request states of its images: query parameters. One that is not known is refused: it may be misspelt."""

    model_config = ConfigDict(frozen=True)

    mpp: Annotated[float, Field(ge=LEAST_UM_PER_PX, le=MOST_UM_PER_PX)] | SkipJsonSchema[None] = Field(
        default=None,
        description="Pixel spacing of the upload, in um/px (a 20x objective gives about 0.5); it applies to every image"
        " of the request. If the model's own spacing is known, the image is rescaled to that for the model; the answer"
        " keeps the upload's pixels. If mpp is left out, a DICOM upload's header is read, and a TIFF's tags.",
    )

    @field_validator("mpp", mode="wrap")
    @classmethod
    def _in_words(cls, value: object, validated: ValidatorFunctionWrapHandler) -> object:
        """Say what a pixel size is, where pydantic would say what its parser or one of its bounds found."""
        try:
            return validated(value)
        except ValidationError as error:
            raise PydanticCustomError(
                "mpp", f"the pixel size is a number from {LEAST_UM_PER_PX:g} to {MOST_UM_PER_PX:g} um/px, as in 0.5"
            ) from error

    @field_validator("*", mode="before")
    @classmethod
    def _no_underscore(cls, value: object) -> object:
        """Refuse what pydantic would read as a number all the same: 0_5, a slip for 0.5, as five."""
        if isinstance(value, str) and "_" in value and value.strip().lstrip("+-.")[:1].isdigit():
            raise PydanticCustomError("underscore", "a number has no underscore; it is written as in 0.5")
        return value


def stated_as(kind: type[_S]) -> Callable[[Request], Awaitable[_S]]:
    """Return a dependency that reads `kind` off the query; FastAPI's own costs a tenth of a request's whole time.

    Raises:
        InvalidRequest: A parameter is there twice, or is not known.
        RequestValidationError: A parameter makes no sense.
    """
    nothing = kind()
    known = ", ".join(kind.model_fields)

    async def read(request: Request) -> _S:
        if not request.scope["query_string"]:
            return nothing
        names = [name for name, _ in request.query_params.multi_items()]
        if len(set(names)) < len(names):
            raise InvalidRequest("the query has a parameter more than once; which of its values is meant?")
        if not kind.model_fields.keys() >= set(names):  # the unknown name is the client's own text
            raise InvalidRequest(f"the query has a parameter that is not known; known here: {known}")
        try:
            return kind.model_validate(dict(request.query_params))
        except ValidationError as error:
            places = [{**one, "loc": ("query", *one["loc"])} for one in error.errors(include_url=False)]
            raise RequestValidationError(places) from error

    return read


def documented(kind: type[Stated]) -> list[dict[str, Any]]:
    """Return OpenAPI's description of the query parameters of `kind`, and of the header that every upload may have."""
    properties: dict[str, dict[str, Any]] = kind.model_json_schema()["properties"]
    return [
        *(
            {"name": name, "in": "query", "required": False, "description": schema["description"], "schema": schema}
            for name, schema in properties.items()
        ),
        _TIMEOUT,
    ]


def seconds_allowed(request: Request, most_seconds: float) -> float:
    """Return in how many seconds a request is to be answered: its own word in X-Request-Timeout may only lower it.

    Raises:
        InvalidRequest: That is no number above 0.
    """
    stated = request.headers.get(TIMEOUT_HEADER)
    if stated is None:
        return most_seconds
    seconds = float(stated) if _SECONDS.fullmatch(stated) else math.nan
    if not 0 < seconds < math.inf or len(request.headers.getlist(TIMEOUT_HEADER)) > 1:
        raise InvalidRequest(f"{TIMEOUT_HEADER} is one number of seconds above 0, as in 2.5")
    return min(seconds, most_seconds)
