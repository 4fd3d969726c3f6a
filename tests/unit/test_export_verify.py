import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from app.pathology.geometry import Size
from app.pathology.manifest import GOLDEN_PIXEL_AGREEMENT, GOLDEN_PROBABILITY_TOLERANCE
from model_export.errors import InvalidCheckpoint, VerificationFailed
from model_export.export import ModelCard, export_bundle, serving_graph
from model_export.runtime import CONFIDENCE_TOLERANCE, OnnxGraph
from model_export.synthetic import draw_patch
from model_export.trials import plan_trials
from model_export.verify import Comparison, verify


def comparison(pixels=1.0, confidence=0, probability=0.0):
    return Comparison((1, 32, 32, 3), pixels, confidence, probability)


@pytest.mark.parametrize(
    ("compared", "passed"),
    [
        (comparison(), True),
        (comparison(pixels=GOLDEN_PIXEL_AGREEMENT), True),
        (comparison(pixels=GOLDEN_PIXEL_AGREEMENT - 1e-6), False),
        (comparison(confidence=CONFIDENCE_TOLERANCE), True),
        (comparison(confidence=CONFIDENCE_TOLERANCE + 1), False),
        (comparison(probability=GOLDEN_PROBABILITY_TOLERANCE), True),
        (comparison(probability=GOLDEN_PROBABILITY_TOLERANCE * 1.01), False),
        (comparison(probability=float("nan")), False),
        (comparison(pixels=float("nan")), False),
    ],
)
def test_each_tolerance_counts(compared, passed):
    assert compared.passed is passed


def test_a_comparison_reads_as_one_line():
    line = str(comparison(0.99987, 1, 2.5e-7))

    assert line == "1x32x32x3: 99.98700% of pixels agree, confidence within 1/255, probabilities within 2.5e-07"


@pytest.mark.parametrize("stride", [1, 32, 48])
def test_trial_batches_are_of_several_sizes_and_always_the_same(stride):
    batches = [trial.batch for trial in plan_trials(stride)]

    for batch, again in zip(batches, plan_trials(stride), strict=True):
        np.testing.assert_array_equal(batch, again.batch)
        assert batch.dtype == np.uint8
        assert batch.shape[1] % stride == batch.shape[2] % stride == 0
    assert {1, 2, 3} <= {len(batch) for batch in batches}
    assert len({batch.shape[1:] for batch in batches}) == len(batches)
    assert any(batch.shape[1] != batch.shape[2] for batch in batches)


@pytest.mark.parametrize(("window_px", "most"), [(64, 224), (256, 256), (640, 640)])
def test_the_last_of_the_trial_batches_is_a_whole_window_and_none_is_larger(window_px, most):
    batches = [trial.batch for trial in plan_trials(32, window_px)]

    assert batches[-1].shape == (1, window_px, window_px, 3)
    assert max(max(batch.shape[1:3]) for batch in batches) == most
    np.testing.assert_array_equal(batches[0], next(plan_trials(32)).batch)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x08\x07garbage" * 100])
def test_a_file_that_is_no_graph_is_refused_in_one_line(tmp_path, capfd, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)

    with pytest.raises(VerificationFailed) as caught:
        OnnxGraph(path)

    assert str(caught.value).startswith("model.onnx: ONNX Runtime refuses it: ")
    assert len(str(caught.value).splitlines()) == 1
    assert capfd.readouterr().err == ""


class Coarse(nn.Module):
    """Sees blocks of 8 px, and answers in whole blocks whatever the input's size."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.Conv2d(3, 4, 3, stride=8, padding=1)

    def forward(self, images):
        return functional.interpolate(self.blocks(images), scale_factor=8.0, mode="nearest")


class Spoilt(nn.Module):
    """Answers with something else than numbers where there is tissue: glass alone does not show it."""

    def __init__(self, spoilt):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)
        self.spoilt = spoilt

    def forward(self, images):
        return self.layer(images) + torch.where(images.mean() < 0.5, self.spoilt, 0.0)


@pytest.mark.parametrize("spoilt", [math.nan, math.inf])
def test_a_network_that_answers_no_numbers_is_refused_though_both_agree(tmp_path, spoilt):
    card = ModelCard(
        name="spoilt", version="1", stride=4, window_px=64, margin_px=8, mean=(128.0,) * 3, std=(128.0,) * 3
    )
    with pytest.raises(
        InvalidCheckpoint, match="is no number, or infinite; look at its weights, and at --mean and --std"
    ):
        export_bundle(Spoilt(spoilt).eval(), card, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_network_whose_stride_was_understated_is_refused(tmp_path):
    card = ModelCard(name="coarse", version="1", stride=4, window_px=64, margin_px=8)
    with pytest.raises(VerificationFailed, match=r"4x4 px give a class map of 8x8: .* larger than 4; export it"):
        export_bundle(Coarse().eval(), card, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


class Foreign(nn.Module):
    """A convolution, and what a test makes of it."""

    def __init__(self, answer, between=None):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.between = between or nn.Identity()
        self.table = nn.Parameter(torch.rand(4, 512, 512), requires_grad=False)
        self.answer = answer

    def forward(self, images):
        return self.answer(self, images)


def by_size(network, images):
    return network.first(images if images.shape[2] <= 600 else -images)


def by_place(network, images):
    found = network.first(images)
    return found + network.table[:, : found.shape[2], : found.shape[3]]


def plain(network, images):
    return network.between(network.first(images))


def foreign(answer, between=None):
    torch.manual_seed(0)
    return Foreign(answer, between).eval()


CARD = ModelCard(name="foreign", version="1", stride=4, window_px=64, margin_px=8)


@pytest.mark.parametrize(
    ("answer", "error", "reason"),
    [
        (by_size, VerificationFailed, "model.onnx: PyTorch and ONNX Runtime disagree: 1x640x640x3: "),
        (by_place, InvalidCheckpoint, "the network does not run on 640x640 px: The size of tensor a (640) must match"),
    ],
)
def test_a_network_that_is_another_one_at_the_size_of_a_window_is_refused(tmp_path, answer, error, reason):
    network = foreign(answer)
    export_bundle(network, CARD, tmp_path / "bundle")
    model = tmp_path / "bundle" / "model.onnx"

    assert [one.shape[1:3] for one in verify(serving_graph(network, CARD), model, 512)][-1] == (512, 512)
    with pytest.raises(error) as caught:
        verify(serving_graph(network, CARD), model, 640)
    assert str(caught.value).startswith(reason)
    assert str(caught.value).endswith(
        "; it passes up to 512 px: have it treat all sizes alike, or pass a smaller --window"
    )
    assert len(str(caught.value).splitlines()) == 1


def no_number_on_white(network, images):
    return plain(network, images) + torch.where(images.min() > 0.9, math.nan, 0.0)


def test_which_image_of_ones_own_is_wrong_is_said(tmp_path):
    network = foreign(no_number_on_white)
    export_bundle(network, CARD, tmp_path / "bundle")
    own = [np.full((1, 64, 64, 3), grey, np.uint8) for grey in (128, 255)]
    with pytest.raises(InvalidCheckpoint, match=r"is no number, or infinite; .*; on --trial image 2$"):
        verify(serving_graph(network, CARD), tmp_path / "bundle" / "model.onnx", 512, own=own)


def test_a_network_whose_answer_depends_on_its_batch_is_refused(tmp_path):
    with pytest.raises(InvalidCheckpoint, match="depends on the other images in its batch: of one of 3 images"):
        export_bundle(foreign(plain, nn.BatchNorm2d(4, track_running_stats=False)), CARD, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_returns_probabilities_is_refused(tmp_path):
    with pytest.raises(InvalidCheckpoint, match=r"where logits are needed: .*; return what its softmax is given"):
        export_bundle(foreign(plain, nn.Softmax(dim=1)), CARD, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("between", "told"), [(nn.Sigmoid(), True), (None, False)])
def test_it_is_told_whether_all_values_lie_between_0_and_1(tmp_path, between, told):
    comparisons = export_bundle(foreign(plain, between), CARD, tmp_path / "bundle")

    assert all(one.unit_range for one in comparisons) is told
    assert not any(one.labels_unit_range for one in comparisons), "it has no label head"


def with_labels(network, images):
    found = network.first(images)
    return {"out": found, "labels": network.between(3 * found[:, :3].mean(dim=(2, 3)))}


@pytest.mark.parametrize(("between", "told"), [(nn.Sigmoid(), True), (None, False)])
def test_it_is_told_whether_all_labels_lie_between_0_and_1(tmp_path, between, told):
    comparisons = export_bundle(foreign(with_labels, between), CARD, tmp_path / "bundle")

    assert all(one.labels_unit_range for one in comparisons) is told
    assert not all(one.unit_range for one in comparisons)


def by_all_of_it(network, images):
    found = network.first(images)
    return 100 * (found - found.mean(dim=(2, 3), keepdim=True))


def surely(network, images):
    return 100 * network.first(images)


@pytest.mark.parametrize(("answer", "seams"), [(surely, False), (by_all_of_it, True)])
def test_a_network_that_sees_all_of_a_window_is_told_of(tmp_path, answer, seams):
    *before, window = export_bundle(foreign(answer), CARD, tmp_path / "bundle")

    assert window.seam > 0.05 if seams else window.seam == 0
    assert [one.seam for one in before] == [None] * len(before)


def test_margins_that_leave_nothing_to_compare_leave_no_seam(tmp_path):
    *_, window = export_bundle(foreign(by_all_of_it), replace(CARD, margin_px=30), tmp_path / "bundle")

    assert window.seam is None


def hardly_by_all_of_it(network, images):
    return by_all_of_it(network, images) / 1000


@pytest.mark.parametrize(("answer", "seams"), [(plain, False), (hardly_by_all_of_it, True)])
def test_of_an_image_of_ones_own_the_pixels_that_the_network_is_unsure_of_show_seams_too(tmp_path, answer, seams):
    own = draw_patch(3, Size(60, 48))[0]

    *_, image, window = export_bundle(foreign(answer), CARD, tmp_path / "bundle", trials=[own])

    assert (image.own, image.shape) == (True, (1, 48, 60, 3))
    assert image.seam > 0.05 if seams else image.seam == 0
    assert (window.own, window.seam) == (False, 0), "of drawn tissue sure pixels alone tell of a seam"


def test_an_image_of_ones_own_that_the_margins_fill_leaves_no_seam(tmp_path):
    own = draw_patch(3, Size(64, 20))[0]

    *_, image, window = export_bundle(foreign(hardly_by_all_of_it), CARD, tmp_path / "bundle", trials=[own])

    assert image.seam is None
    assert window.seam is not None


def first_everywhere(network, images):
    return network.first(images) * 0 + torch.tensor([3.0, 0.0, 0.0, 0.0]).reshape(1, 4, 1, 1)


@pytest.mark.parametrize(("answer", "classes"), [(plain, 4), (first_everywhere, 1)])
def test_the_pixels_of_each_class_are_counted_in_every_batch(tmp_path, answer, classes):
    comparisons = export_bundle(foreign(answer, nn.Identity()), CARD, tmp_path / "bundle")

    for one in comparisons:
        assert len(one.class_pixels) == 4
        assert sum(one.class_pixels) == math.prod(one.shape[:3])
    assert sum(any(one.class_pixels[index] for one in comparisons) for index in range(4)) == classes
