"""What a result says of itself wherever it is saved: its model, how that saw the image, and what the result is for."""

from dataclasses import dataclass

from app.imaging.png import text_chunk
from app.pathology.manifest import ModelManifest
from app.software import software_version

DIGITS = 6
"""Decimals of a spacing and of a scale factor."""
_DIGEST_DIGITS = 12


@dataclass(frozen=True, slots=True)
class Conditions:
    """How a model saw an image.

    Attributes:
        um_per_px: The image's own pixel spacing; None when not known.
        scale_factor: Pixels that the model saw in one of the image's, along a side; 1 where it saw the image's own.
        warnings: Codes of what is odd about the image.
    """

    um_per_px: float | None
    scale_factor: float
    warnings: tuple[str, ...]

    @property
    def stated(self) -> dict[str, str]:
        """The same as text without commas: a spacing that is not known as "unknown", codes with spaces between."""
        return {
            "um_per_px": "unknown" if self.um_per_px is None else str(round(self.um_per_px, DIGITS)),
            "scale_factor": str(round(self.scale_factor, DIGITS)),
            "warnings": " ".join(self.warnings) or "none",
        }


def software() -> str:
    """Return which release of which program makes a result, as files name it."""
    return f"tessera {software_version()}"


def description(manifest: ModelManifest, conditions: Conditions | None = None) -> str:
    """Return which model made a picture, the same for the same arguments.

    Args:
        manifest: Of the model.
        conditions: Left out where the picture goes beside what states them.
    """
    stated = {} if conditions is None else conditions.stated
    said = (
        f"Tissue segmentation by {manifest.name} {manifest.version}, model SHA-256 {manifest.sha256[:_DIGEST_DIGITS]}",
        *(f"{name}={value}" for name, value in stated.items()),
        manifest.intended_use,
    )
    return "; ".join(said)


def picture_text(manifest: ModelManifest, conditions: Conditions | None = None) -> bytes:
    """Return a PNG's chunks of text that say which program and model made it; see `description`."""
    return text_chunk("Software", software()) + text_chunk("Description", description(manifest, conditions))
