"""Stains as a slide's header codes them, in the form that highdicom writes and an archive gives back."""

import pytest
from highdicom import SpecimenPreparationStep, SpecimenStaining
from highdicom.content import SpecimenCollection
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from app.slides.dicom_stains import names_other_stains

STAINS = codes.cid8112
HAEMATOXYLIN = STAINS.HematoxylinStain
EOSIN = STAINS.WaterSolubleEosinStain
PAS = STAINS.PeriodicAcidSchiffStain
HE_METHOD = Code("104210008", "SCT", "hematoxylin and eosin stain method")
FORMER_HE_METHOD = Code("P3-50495", "SRT", "hematoxylin and eosin stain method")
FORMER_PAS = Code("C-2281F", "SRT", "PAS")
FORMER_HAEMATOXYLIN, FORMER_EOSIN = Code("C-22968", "SRT", "hematoxylin"), Code("C-22919", "SRT", "eosin")


def stained(*substances: Code | str) -> SpecimenPreparationStep:
    return SpecimenPreparationStep(specimen_id="B-1", processing_procedure=SpecimenStaining(substances))


def header(*steps: Dataset) -> Dataset:
    """A slide's, as it comes over WADO-RS."""
    slide, specimen = Dataset(), Dataset()
    specimen.SpecimenPreparationSequence = list(steps)
    slide.SpecimenDescriptionSequence = [specimen]
    return Dataset.from_json(slide.to_json())


@pytest.mark.parametrize(
    ("stains", "others"),
    [
        ((HAEMATOXYLIN, EOSIN), False),
        ((FORMER_HAEMATOXYLIN, FORMER_EOSIN), False),
        ((HAEMATOXYLIN, EOSIN, STAINS.SaffronStain), False),
        ((HAEMATOXYLIN, STAINS.PhloxinBStain), False),
        ((EOSIN,), False),
        ((HAEMATOXYLIN,), False),
        (("PAS",), False),
        ((PAS,), True),
        ((PAS, HAEMATOXYLIN), True),
        ((PAS, FORMER_HAEMATOXYLIN), True),
        ((STAINS.TrichromeStain,), True),
        ((Code("CK7", "99LAB", "cytokeratin 7"), HAEMATOXYLIN), False),
        ((Code("HE", "99LAB", "H&E"),), False),
        ((Code("HE", "99LAB", "H&E"), PAS), True),
        ((HE_METHOD,), False),
        ((FORMER_HE_METHOD, STAINS.SaffronStain), False),
        ((FORMER_PAS,), True),
    ],
    ids=str,
)
def test_other_stains_are_known_ones_without_eosin(stains, others):
    assert names_other_stains(header(stained(*stains))) is others
    assert names_other_stains(header(*map(stained, stains))) is others, "a step each"


def test_what_is_not_a_stain_is_not_taken_for_one():
    collected = SpecimenPreparationStep("B-1", SpecimenCollection(procedure=codes.SCT.Biopsy))
    fixed = stained(PAS)
    fixed.SpecimenPreparationStepContentItemSequence[-1].ConceptNameCodeSequence[0].CodeValue = "430864009"
    no_staining = stained(PAS)
    del no_staining.SpecimenPreparationStepContentItemSequence[1]
    for step in (collected, fixed, no_staining):
        assert not names_other_stains(header(step))
    assert names_other_stains(header(collected, stained(PAS)))


def test_no_codes_and_malformed_ones_mean_nothing():
    empty, malformed = stained(PAS), stained(PAS)
    for item in empty.SpecimenPreparationStepContentItemSequence:
        item.ConceptNameCodeSequence = []
    for item in malformed.SpecimenPreparationStepContentItemSequence:
        item.ConceptNameCodeSequence[0].CodeValue = None
    assert not names_other_stains(Dataset())
    assert not names_other_stains(header())
    for step in (Dataset(), empty, malformed):
        assert not names_other_stains(header(step))
    odd = Dataset.from_json({"00400560": {"vr": "UT", "Value": ["no sequence"]}})
    assert not names_other_stains(odd)
