import numpy as np
import pytest
import torch
from torch import nn

from model_export import predict as predict_module
from model_export.network import STRIDE, TissueNetwork
from model_export.predict import labels_as_served, predict, segmentation_loss
from model_export.training.augment import normalise
from model_export.training.dataset import IGNORE
from tests.model_export_support import drawn_samples, one_thread

IMAGE = drawn_samples(1, side_px=96)[0].image


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return TissueNetwork(pretrained=False).eval()


def test_both_heads_answer_at_their_resolutions(network):
    outputs = network(torch.zeros((2, 3, 2 * STRIDE, 3 * STRIDE)))

    assert outputs["out"].shape == (2, 4, 2 * STRIDE, 3 * STRIDE)
    assert outputs["labels"].shape == (2, 3)


def test_a_network_starts_from_the_same_encoder_and_from_other_heads():
    first, second = TissueNetwork(), TissueNetwork(class_count=2, label_count=1)

    assert torch.equal(first.stem[0].weight, second.stem[0].weight)
    assert first.segment[1].out_channels == 4
    assert (second.segment[1].out_channels, second.classify[1].out_channels) == (2, 1)
    assert not torch.equal(first.stem[0].weight, TissueNetwork(pretrained=False).stem[0].weight)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (31, 65), (64, 33), (96, 96)])
def test_an_image_of_any_size_is_padded_by_reflection_and_cropped_again(network, height, width):
    image = np.ascontiguousarray(IMAGE[:height, :width])
    rows, columns = (np.pad(np.arange(n), (0, -n % STRIDE), mode="reflect") for n in (height, width))
    padded = torch.from_numpy(image[rows][:, columns]).permute(2, 0, 1)[None].float()

    prediction = predict(network, image)

    with torch.inference_mode():
        outputs = network(normalise(padded))
    assert prediction.class_map.shape == (height, width)
    assert prediction.class_map.dtype == np.uint8
    torch.testing.assert_close(prediction.logits, outputs["out"][:, :, :height, :width], rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(prediction.class_map, prediction.logits[0].argmax(dim=0))
    np.testing.assert_allclose(prediction.label_probabilities, outputs["labels"].sigmoid()[0], rtol=1e-3)
    assert prediction.label_probabilities.dtype == np.float32


def test_the_segmentation_loss_is_the_mean_over_known_pixels(network):
    prediction = predict(network, IMAGE[:32, :32])
    class_map = np.full((32, 32), IGNORE, np.uint8)
    class_map[3, 4], class_map[20, 9] = 1, 2

    log_probabilities = prediction.logits[0].log_softmax(dim=0)
    expected = -(log_probabilities[1, 3, 4] + log_probabilities[2, 20, 9]) / 2
    assert segmentation_loss(prediction, class_map, IGNORE) == pytest.approx(float(expected), rel=1e-5)


class Bright(nn.Module):
    """Has a logit of each label that is the mean of a colour."""

    def forward(self, images):
        return {"out": images[:, :1].repeat(1, 4, 1, 1), "labels": images.mean(dim=(2, 3))}


def test_the_labels_of_an_image_are_the_largest_of_its_windows(monkeypatch):
    network = Bright()
    image = drawn_samples(2, side_px=192)[1].image
    whole = predict(network, image)
    np.testing.assert_array_equal(labels_as_served(network, image, whole), whole.label_probabilities)

    monkeypatch.setattr(predict_module, "WINDOW_PX", 128)
    monkeypatch.setattr(predict_module, "MARGIN_PX", 32)
    served = labels_as_served(network, image, whole)

    corners = [image[y : y + 128, x : x + 128] for y in (0, 64) for x in (0, 64)]
    expected = np.max([predict(network, corner).label_probabilities for corner in corners], axis=0)
    np.testing.assert_array_equal(served, expected)
    assert (served != whole.label_probabilities).any()
