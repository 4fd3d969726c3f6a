"""What writes DICOM results, for tests that do not care how the model saw the image: as it is, with nothing odd."""

from collections.abc import Sequence
from fractions import Fraction

from pydicom import Dataset

from app.interop import dicom_pyramid, dicom_seg, dicom_sr
from app.interop.dicom_pyramid import SAME, Spans
from app.interop.dicom_seg import PyramidLevel
from app.interop.provenance import Conditions
from app.pathology.arrays import ClassMap
from app.pathology.manifest import ModelManifest

AS_IT_IS = Conditions(None, 1.0, ())


def segmentation_object(
    source: Dataset,
    class_map: ClassMap,
    manifest: ModelManifest,
    conditions: Conditions = AS_IT_IS,
    level: PyramidLevel | None = None,
) -> Dataset:
    return dicom_seg.segmentation_object(source, class_map, manifest, conditions, level)


def measurement_report(
    source: Dataset,
    seg: Dataset,
    fractions: Sequence[float],
    manifest: ModelManifest,
    conditions: Conditions = AS_IT_IS,
    image_mm2: float | None = None,
) -> Dataset:
    return dicom_sr.measurement_report(source, seg, fractions, manifest, conditions, image_mm2)


def segmentation_pyramid(
    levels: Sequence[Dataset],
    class_map: ClassMap,
    manifest: ModelManifest,
    spans: Spans = SAME,
    warnings: tuple[str, ...] = (),
) -> tuple[Dataset, ...]:
    """Return the pyramid of a map that the model made of the first level's own pixels, unless other spans are given."""
    return dicom_pyramid.segmentation_pyramid(levels, class_map, manifest, spans, warnings)


def reduced(class_map: ClassMap, shape: tuple[int, int], steps: Spans | None = None) -> ClassMap:
    """Return the class map at another level, by default one that shows the same."""
    steps = steps or (Fraction(class_map.shape[0], shape[0]), Fraction(class_map.shape[1], shape[1]))
    return dicom_pyramid.reduced(class_map, shape, steps)
