import highdicom as hd
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import uid

from app.errors import ImageRejected
from tests.dicom_pixels import decode_dicom
from tests.dicom_results import segmentation_object
from tests.dicom_sources import CANARY, file_of, header_of, microscopic, secondary_capture, whole_slide
from tests.fakes import manifest
from tests.pictures import noise

SIDES = st.integers(1, 70)
FILES = [
    file_of(source)
    for source in (
        whole_slide(noise(70, 50), tile=32),
        whole_slide(noise(70, 50), tile=32, sparse=True),
        whole_slide(noise(70, 50), tile=32, syntax=uid.JPEGBaseline8Bit),
        whole_slide(noise(70, 50), tile=32, syntax=uid.JPEG2000Lossless),
        whole_slide(noise(70, 50), tile=32, syntax=uid.RLELossless),
        microscopic(noise(20, 10)),
        secondary_capture(noise(20, 10)),
    )
]


@settings(max_examples=40)
@given(SIDES, SIDES, st.integers(2, 40), st.booleans(), st.integers(0, 99))
def test_any_slide_in_any_tiles_is_its_pixels(width, height, tile, sparse, seed):
    image = noise(width, height, seed)
    assert np.array_equal(decode_dicom(file_of(whole_slide(image, tile=tile, sparse=sparse)), 70), image)


@settings(max_examples=25)
@given(SIDES, SIDES, st.integers(3, 40), st.booleans(), st.integers(0, 99))
def test_any_class_map_comes_back_from_its_segmentation(width, height, tile, sparse, seed):
    class_map = np.random.default_rng(seed).integers(0, 4, (height, width), dtype=np.uint8)
    source = header_of(whole_slide(noise(width, height), tile=tile, sparse=sparse))
    seg = segmentation_object(source, class_map, manifest())
    numbers = hd.seg.Segmentation.from_dataset(seg).get_total_pixel_matrix(combine_segments=True)
    assert np.array_equal(numbers, np.array([1, 2, 3, 0])[class_map])


@settings(max_examples=300)
@given(
    st.sampled_from(FILES),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    st.floats(0.01, 1),
)
def test_a_damaged_file_is_decoded_or_refused_and_never_quoted(data, changes, share):
    damaged = bytearray(data)
    for place, value in changes:
        damaged[132 + int(place * (len(damaged) - 132))] = value
    try:
        pixels = decode_dicom(bytes(damaged[: int(len(damaged) * share)]), 70)
    except ImageRejected as refused:
        message = str(refused)
    else:
        assert pixels.dtype == np.uint8
        message = ""
    assert "\n" not in message
    assert CANARY.split("^")[0] not in message
