import pytest
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from model_export import checkpoint
from model_export.checkpoint import read_checkpoint, save_checkpoint
from model_export.errors import InvalidCheckpoint, VerificationFailed, first_fault, first_line
from model_export.factory import load_network
from model_export.runtime import OnnxGraph
from tests.model_export_support import TWO_CLASSES


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("the first\nand the second"), "the first"),
        (ValueError("\n  after an empty one  \n"), "after an empty one"),
        (MemoryError(), "MemoryError"),
        (RuntimeError(" \n "), "RuntimeError"),
    ],
)
def test_an_exception_is_told_by_its_first_line_or_its_type(error, line):
    assert first_line(error) == line


def raising(error):
    def refuse(*_args, **_options):
        raise error

    return refuse


def test_an_exception_without_text_is_told_in_one_line_wherever_it_comes_from(tmp_path, monkeypatch):
    path = tmp_path / "weights.pth"
    save_checkpoint(path, {})
    monkeypatch.setattr("onnxruntime.InferenceSession", raising(MemoryError()))
    with pytest.raises(VerificationFailed, match=r"^model\.onnx: ONNX Runtime refuses it: MemoryError$"):
        OnnxGraph(tmp_path / "model.onnx")

    monkeypatch.setattr(checkpoint.torch, "load", raising(MemoryError()))
    with pytest.raises(InvalidCheckpoint, match=r": not a checkpoint of tensors: MemoryError$"):
        read_checkpoint(path)

    monkeypatch.setattr(checkpoint.torch, "save", raising(RuntimeError()))
    with pytest.raises(OSError, match=r"could not be written \(RuntimeError\)"):
        save_checkpoint(path, {})


def test_a_factory_that_raises_without_a_word_is_told_by_the_type_alone(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "weights.pth", {"weight": checkpoint.torch.zeros(1)})
    monkeypatch.setattr("model_export.synthetic.draw_patch", raising(MemoryError()))

    with pytest.raises(InvalidCheckpoint, match=r"^factory model_export\.synthetic:draw_patch: MemoryError$"):
        load_network(read_checkpoint(tmp_path / "weights.pth"), TWO_CLASSES, "model_export.synthetic:draw_patch")


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    sizes: list[int]


class Outer(BaseModel):
    inner: Inner
    first: int = 0

    @model_validator(mode="after")
    def _small(self):
        if self.first > 1:
            raise ValueError("first must be small")
        return self


@pytest.mark.parametrize(
    ("values", "within", "fault"),
    [
        ({"inner": {"sizes": [1, "x"]}, "first": "y"}, (), "inner.sizes.1: Input should be a valid integer"),
        ({"inner": {"sizes": [1, "x"]}}, ("manifest",), "manifest.inner.sizes.1: Input should be a valid integer"),
        ({"inner": {"sizes": [], "size": 1}}, ("manifest",), "manifest.inner.size: no such field"),
        ({"inner": {"sizes": []}, "first": 2}, (), "Value error, first must be small"),
        ({"inner": {"sizes": []}, "first": 2}, ("manifest",), "manifest: Value error, first must be small"),
    ],
)
def test_the_first_thing_that_is_wrong_is_told_with_its_place(values, within, fault):
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(values)

    assert first_fault(caught.value, *within).startswith(fault)
