import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from app.pathology.classes import WSSS4LUAD
from model_export.channels import index_of_highest, planes
from model_export.errors import InvalidCheckpoint
from model_export.serving_graph import ServingGraph
from tests.model_export_support import TWO_CLASSES

MEAN, STD = (120.0, 90.0, 140.0), (50.0, 60.0, 70.0)
STRIDE = 8
BATCH = np.random.default_rng(0).integers(0, 256, (3, 48, 80, 3), dtype=np.uint8)


class Network(nn.Module):
    """A convolution whose output is given in the way a test asks for."""

    def __init__(self, answer="tensor", class_count=4, label_count=3, shrink=1):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.answer = answer
        self.convolution = nn.Conv2d(3, class_count, shrink, stride=shrink)
        self.head = nn.Linear(3, label_count)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def forward(self, images):
        logits = self.convolution(images)
        labels = self.head(images.mean(dim=(2, 3)))
        return {
            "tensor": logits,
            "out": {"out": logits},
            "labels": {"out": logits, "labels": labels},
            "list": {"out": logits, "labels": [labels]},
            "aux": {"aux": logits},
            "flat": logits.flatten(2),
            "pair": (logits, labels),
            "none": None,
            "words": {"out": "logits"},
        }[self.answer]


class Raising(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, images):
        raise self.error


def graph(network, classes=WSSS4LUAD, stride=STRIDE):
    return ServingGraph(network, classes, MEAN, STD, stride)


@torch.inference_mode()
def run(served, batch=BATCH):
    return [output.numpy() for output in served(torch.from_numpy(np.ascontiguousarray(batch)))]


def reference(network, batch=BATCH, shrink=1):
    """Say in plain numpy what the graph has to return; logits from the network itself."""
    scaled = (batch.astype(np.float64) - MEAN) / STD
    with torch.inference_mode():
        outputs = network(torch.from_numpy(scaled).permute(0, 3, 1, 2).float())
        logits = outputs if isinstance(outputs, torch.Tensor) else outputs["out"]
        if shrink > 1:
            logits = functional.interpolate(logits, size=batch.shape[1:3], mode="bilinear", align_corners=False)
    logits = logits.double().numpy()
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    labels = outputs["labels"].double().numpy() if isinstance(outputs, dict) and "labels" in outputs else None
    return logits.argmax(axis=1), probabilities.max(axis=1), None if labels is None else 1 / (1 + np.exp(-labels))


def largest_shares(class_map, block_px):
    """Say of each of the first three classes the largest share it has of any block that begins inside the image."""
    height, width = class_map.shape[1:]
    whole = min(block_px, height) * min(block_px, width)
    counts = [
        [(class_map[:, top : top + block_px, left : left + block_px] == index).sum(axis=(1, 2)) for index in range(3)]
        for top in range(0, height, block_px)
        for left in range(0, width, block_px)
    ]
    return np.max(counts, axis=0).T / whole


def assert_as_reference(returned, expected):
    class_map, confidence, _ = returned
    assert class_map.dtype == confidence.dtype == np.uint8
    assert (class_map == expected[0]).mean() > 0.9999
    assert len(np.unique(class_map)) > 1
    assert np.abs(confidence - 255 * expected[1]).max() <= 0.51


@pytest.mark.parametrize("answer", ["tensor", "out", "labels"])
def test_the_graph_says_what_a_plain_reference_says(answer):
    network = Network(answer)

    returned = run(graph(network))

    expected = reference(network)
    assert_as_reference(returned, expected)
    assert returned[0].shape == returned[1].shape == BATCH.shape[:3]
    assert returned[2].shape == (len(BATCH), 3)
    assert returned[2].dtype == np.float32
    if answer == "labels":
        np.testing.assert_allclose(returned[2], expected[2], atol=1e-5)


@pytest.mark.parametrize("shrink", [2, 4, 8])
def test_logits_of_a_lower_resolution_are_scaled_up(shrink):
    network = Network("out", shrink=shrink)
    served = graph(network)

    returned = run(served)

    assert served.scale == shrink
    assert returned[0].shape == BATCH.shape[:3]
    assert_as_reference(returned, reference(network, shrink=shrink))


def test_of_equal_channels_the_first_is_the_class():
    values = torch.tensor([[0.0, 2, 2, 1], [2, 2, 0, 2], [1, 1, 1, 1], [0, 0, 0, 3]]).T[None, :, None, :]

    found = index_of_highest(planes(values))

    assert found.dtype == torch.uint8
    assert found.tolist() == [[[[1, 0, 0, 3]]]]


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_a_temperature_moves_the_confidence_and_nothing_else(temperature):
    network = Network("labels")
    plain = run(graph(network))

    class_map, confidence, labels = run(ServingGraph(network, WSSS4LUAD, MEAN, STD, STRIDE, temperature))

    np.testing.assert_array_equal(class_map, plain[0])
    np.testing.assert_array_equal(labels, plain[2])
    with torch.inference_mode():
        scaled = (torch.from_numpy(BATCH).permute(0, 3, 1, 2).double() - torch.tensor(MEAN).view(1, 3, 1, 1)) / (
            torch.tensor(STD).view(1, 3, 1, 1)
        )
        expected = (network(scaled.float())["out"].double() / temperature).softmax(dim=1).amax(dim=1)
    assert np.abs(confidence - 255 * expected.numpy()).max() <= 0.51
    assert (confidence != plain[1]).mean() > 0.1


@pytest.mark.parametrize(("stride", "block_px"), [(1, 32), (8, 32), (12, 36), (16, 32), (32, 32), (48, 48)])
@pytest.mark.parametrize("blocks", [(1, 1), (2, 3), (5, 9)])
def test_without_a_head_a_label_is_the_largest_share_of_any_block(stride, block_px, blocks):
    height, width = blocks[0] * stride, blocks[1] * stride
    batch = np.random.default_rng(0).integers(0, 256, (3, height, width, 3), dtype=np.uint8)

    class_map, _, labels = run(graph(Network("out"), stride=stride), batch)

    np.testing.assert_allclose(labels, largest_shares(class_map, block_px), atol=1e-6)
    for index in range(len(batch)):
        alone = run(graph(Network("out"), stride=stride), batch[index : index + 1])[2]
        np.testing.assert_array_equal(alone[0], labels[index])


class Red(nn.Module):
    """Class 0 where a pixel is red, else class 3."""

    def forward(self, images):
        red = images[:, :1]
        return torch.cat([red, -9 + 0 * red, -9 + 0 * red, -red], dim=1)


@pytest.mark.parametrize("stride", [1, 4, 16, 32])
@pytest.mark.parametrize("sides", [(64, 64), (33, 65), (100, 40)])
def test_a_stray_pixel_gives_no_label_at_any_stride(stride, sides):
    height, width = (-(-side // stride) * stride for side in sides)
    image = np.zeros((1, height, width, 3), np.uint8)
    for row, column in ((0, 0), (height // 2, width // 2), (height - 1, width - 1)):
        stray = image.copy()
        stray[0, row, column] = 255
        assert run(graph(Red(), stride=stride), stray)[2].max() <= 1 / 1024


@pytest.mark.parametrize("sides", [(1, 1), (16, 16), (33, 40), (64, 96)])
def test_an_image_of_one_class_has_its_label_whatever_its_size(sides):
    found = run(graph(Red(), stride=1), np.full((1, *sides, 3), 255, np.uint8))[2]

    np.testing.assert_array_equal(found, [[1, 0, 0]])


def test_without_a_head_only_label_classes_have_a_probability():
    network = Network("tensor", class_count=2)

    class_map, _, labels = run(graph(network, TWO_CLASSES))

    assert labels.shape == (len(BATCH), 1)
    assert labels.max() <= 1.0
    assert set(np.unique(class_map)) == {0, 1}


def test_extreme_label_logits_give_probabilities_of_zero_and_one():
    network = Network("labels")
    network.head.weight.data.zero_()
    network.head.bias.data = torch.tensor([-200.0, 0.0, 200.0])

    np.testing.assert_allclose(run(graph(network))[2], [[0.0, 0.5, 1.0]] * len(BATCH), atol=1e-7)


def test_the_graph_is_in_evaluation_mode():
    served = graph(nn.Sequential(Network("tensor"), nn.Dropout(0.9)).train())

    for ours, theirs in zip(run(served), run(served), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (Network("tensor", class_count=5), "the network has 5 classes, the class list 4"),
        (
            Network("tensor", class_count=1),
            "the network has 1 class, the class list 4: where the sigmoid of its logit z is a class's probability,"
            " return torch.cat([z, 0 * z], dim=1), and list that class and the rest",
        ),
        (Network("labels", label_count=4), "the label head returns (1, 4), not (N, 3)"),
        (Network("list"), "what the network returns under labels must be logits (N, L)"),
        (Network("aux"), "a dictionary with them under out"),
        (Network("pair"), "must return logits (N, C, H, W), or a dictionary with them under out"),
        (Network("none"), "must return logits (N, C, H, W), or a dictionary with them under out"),
        (Network("flat"), "must return logits (N, C, H, W), or a dictionary with them under out"),
        (Network("words"), "must return logits (N, C, H, W), or a dictionary with them under out"),
        (nn.Conv2d(1, 4, 1), "does not run on a 16x16 px image: "),
        (nn.Conv2d(3, 4, 3), "logits of 14x14 do not divide an input of 16x16 px evenly"),
        (nn.Sequential(Network(), nn.Upsample(scale_factor=2)), "logits of 32x32 do not divide an input of 16x16"),
        (nn.Sequential(Network(), nn.AvgPool2d((2, 1))), "logits of 16x8 do not divide an input of 16x16 px evenly"),
        (
            Raising(AssertionError("only 224 px\nplease")),
            "does not run on a 16x16 px image: only 224 px; try a larger --stride; inputs are any multiples of it up"
            " to --window, so a network made for one size has to interpolate its learned positions",
        ),
        (Raising(IndexError()), "does not run on a 16x16 px image: IndexError"),
        (Raising(ZeroDivisionError("by zero")), "does not run on a 16x16 px image: by zero"),
    ],
)
def test_a_network_that_does_not_fit_is_refused_in_one_line(network, reason):
    with pytest.raises(InvalidCheckpoint) as caught:
        graph(network)

    assert reason in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
