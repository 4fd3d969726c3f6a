import hashlib
import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from app.errors import DeviceUnavailable, InvalidBundle, ModelNotReady, OutOfMemory
from app.inference import model as model_module
from app.inference import session as session_module
from app.inference.batch import BatchLimits
from app.inference.bundle import check_golden, find_precision, load_bundle
from app.inference.model import load_segmenter
from app.inference.segmenter import ModelChoice
from app.inference.session import OnnxSession, open_session
from app.pathology.manifest import GOLDEN_FILE, MANIFEST_FILE, MODEL_FILE
from app.settings import DEFAULT_BUNDLE, QUALITY_BUNDLE
from app.telemetry.metrics import Metrics

pytestmark = pytest.mark.anyio


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DEFAULT_BUNDLE, tmp_path / "bundle"))


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def rewrite(bundle: Path, **changes: object) -> None:
    path = bundle / MANIFEST_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("shipped", [DEFAULT_BUNDLE, QUALITY_BUNDLE])
def test_a_shipped_bundle_is_whole_and_reproduces_its_golden_pair(shipped):
    loaded = load_bundle(shipped)
    check_golden(loaded, open_session(loaded.model, "cpu"))
    assert [tissue.name for tissue in loaded.manifest.classes] == ["tumor", "stroma", "normal", "background"]
    assert loaded.manifest.intended_use == "research use only"
    assert sum(file.stat().st_size for file in shipped.iterdir()) < 25_000_000


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_quality_bundle_says_of_a_mirrored_patch_what_it_says_of_the_patch(precision):
    changed = []
    for shipped in (DEFAULT_BUNDLE, QUALITY_BUNDLE):
        loaded = load_bundle(find_precision(shipped, precision))
        session = open_session(loaded.model, "cpu")
        upright = session.run(loaded.golden_image).class_maps
        mirrored = session.run(np.ascontiguousarray(loaded.golden_image[:, :, ::-1])).class_maps[:, :, ::-1]
        changed.append((upright != mirrored).mean())
    assert changed[1] < changed[0] / 5  # int8 has scales of its own for each view


@pytest.mark.parametrize("name", [MANIFEST_FILE, MODEL_FILE, GOLDEN_FILE])
def test_a_missing_file_is_named(bundle, name):
    (bundle / name).unlink()
    with pytest.raises(InvalidBundle, match=f"{name}: cannot be read"):
        load_bundle(bundle)


@pytest.mark.parametrize("name", [MODEL_FILE, GOLDEN_FILE])
def test_a_changed_byte_is_found(bundle, name):
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    with pytest.raises(InvalidBundle, match=f"{name}: its SHA-256 is"):
        load_bundle(bundle)


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "not a manifest"), ("{}", "not a manifest: name: Field required"), ("[1, 2]", "not a manifest")],
)
def test_what_is_no_manifest_is_said(bundle, content, message):
    (bundle / MANIFEST_FILE).write_text(content)
    with pytest.raises(InvalidBundle, match=message):
        load_bundle(bundle)


@pytest.mark.parametrize("um_per_px", [float("inf"), float("nan"), 250, 10.01, 0.049, 1e-9, 0, -1])
def test_a_spacing_that_no_microscope_gives_is_refused(bundle, um_per_px):
    rewrite(bundle, um_per_px=um_per_px)
    with pytest.raises(InvalidBundle, match="not a manifest: um_per_px"):
        load_bundle(bundle)


@pytest.mark.parametrize("um_per_px", [0.05, 10, None])
def test_a_spacing_on_the_bounds_is_a_models(bundle, um_per_px):
    rewrite(bundle, um_per_px=um_per_px)
    assert load_bundle(bundle).manifest.um_per_px == um_per_px


def test_a_golden_file_of_something_else_is_refused(bundle):
    np.savez(bundle / GOLDEN_FILE, image=np.zeros(3))
    digest = digest_of(bundle / GOLDEN_FILE)
    rewrite(bundle, golden_sha256=digest)
    with pytest.raises(InvalidBundle, match="not a golden pair"):
        load_bundle(bundle)


@pytest.mark.parametrize(
    ("array", "change", "message"),
    [
        ("class_map", lambda values: 3 - values, "does not reproduce its golden pair"),
        ("label_probability", lambda values: values + 0.01, "label probabilities differ"),
        ("class_map", lambda values: values[:, :-1], "class maps of"),
        ("label_probability", lambda values: values * np.nan, "label probabilities differ by up to nan"),
        ("label_probability", lambda values: values[:, :-1], "labels of"),
        ("confidence", lambda values: values[:, :-1], "confidences of"),
        ("image", lambda values: values[:, :-1], "does not run its golden input"),
    ],
)
def test_a_model_that_is_not_the_golden_pairs_is_refused(bundle, array, change, message):
    with np.load(bundle / GOLDEN_FILE) as golden:
        arrays = dict(golden)
    arrays[array] = change(arrays[array])
    np.savez(bundle / GOLDEN_FILE, **arrays)
    rewrite(bundle, golden_sha256=digest_of(bundle / GOLDEN_FILE))
    loaded = load_bundle(bundle)
    with pytest.raises(InvalidBundle, match=message):
        check_golden(loaded, open_session(loaded.model, "cpu"))


def test_nothing_is_served_before_the_golden_pair_is_reproduced(bundle):
    with np.load(bundle / GOLDEN_FILE) as golden:
        arrays = dict(golden)
    np.savez(bundle / GOLDEN_FILE, **{**arrays, "class_map": 3 - arrays["class_map"]})
    rewrite(bundle, golden_sha256=digest_of(bundle / GOLDEN_FILE))
    shutil.rmtree(bundle / "int8")  # which would be served, having reproduced its own
    with pytest.raises(InvalidBundle, match="does not reproduce its golden pair"):
        load_segmenter(ModelChoice(bundle, "cpu"))


async def test_a_model_says_what_it_is_and_where_it_runs_to_whoever_starts_it(bundle):
    model = load_segmenter(ModelChoice(bundle, "cpu"))
    for _ in range(2):  # also if it is closed and started anew
        metrics = Metrics(CollectorRegistry())
        value = metrics.registry.get_sample_value
        await model.start(metrics)
        said = {"name": model.manifest.name, "version": model.manifest.version, "sha256": model.manifest.sha256}
        assert value("tessera_model_info", said) == 1
        assert value("tessera_device_info", {"device": "cpu", "provider": "CPUExecutionProvider"}) == 1
        side = model.manifest.stride
        await model.segment(np.zeros((side, side, 3), np.uint8))
        assert value("tessera_batch_size_count") == 1
        await model.close()


def test_a_model_with_more_classes_than_its_manifest_is_refused(bundle):
    classes = json.loads((bundle / MANIFEST_FILE).read_text())["classes"][:3]
    rewrite(bundle, classes=classes)
    loaded = load_bundle(bundle)
    with pytest.raises(InvalidBundle, match="predicts class 3, which its manifest does not name"):
        check_golden(loaded, open_session(loaded.model, "cpu"))


def test_bytes_that_are_no_graph_are_refused():
    with pytest.raises(InvalidBundle, match="ONNX Runtime refuses the model"):
        open_session(b"not a graph", "cpu")


def test_the_answer_does_not_depend_on_the_batch():
    loaded = load_bundle(DEFAULT_BUNDLE)
    session = open_session(loaded.model, "cpu")
    windows = np.concatenate([np.roll(loaded.golden_image, shift, axis=2) for shift in range(0, 160, 10)])
    alone = [session.run(window[None]) for window in windows]
    for size in (2, 3, 4, 7, 16):
        together = session.run(windows[:size])
        for index in range(size):
            assert np.array_equal(together.class_maps[index], alone[index].class_maps[0])
            assert np.array_equal(together.confidences[index], alone[index].confidences[0])
            assert np.array_equal(together.label_probabilities[index], alone[index].label_probabilities[0])


def test_cuda_without_a_gpu_refuses_and_says_so():
    if session_module._has_gpu():
        pytest.skip("this machine has a GPU")
    with pytest.raises(DeviceUnavailable, match="no NVIDIA GPU with a working driver"):
        open_session(load_bundle(DEFAULT_BUNDLE).model, "cuda")


@pytest.fixture
def _cuda_comes_up_as_cpu(monkeypatch):
    """A GPU whose CUDA libraries are missing: the runtime lists CUDA as available, and its session falls back."""
    monkeypatch.setattr(session_module, "_has_gpu", lambda: True)
    runtime = session_module.onnxruntime
    real = runtime.InferenceSession
    monkeypatch.setattr(runtime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(runtime, "preload_dlls", lambda: print("Failed to load libcublas.so"), raising=False)
    monkeypatch.setattr(
        runtime,
        "InferenceSession",
        lambda model, options, **_: real(model, options, providers=["CPUExecutionProvider"]),
    )


@pytest.mark.usefixtures("_cuda_comes_up_as_cpu")
def test_a_session_that_fell_back_to_the_cpu_is_not_cuda():
    with pytest.raises(DeviceUnavailable, match=r"requirements/cuda.txt \(Failed to load libcublas.so\)"):
        open_session(load_bundle(DEFAULT_BUNDLE).model, "cuda")


@pytest.mark.usefixtures("_cuda_comes_up_as_cpu")
def test_auto_says_so_when_a_gpu_is_there_and_cuda_is_not(caplog):
    assert open_session(load_bundle(DEFAULT_BUNDLE).model, "auto").device == "cpu"
    assert "a GPU is present but not used" in caplog.text
    assert "libcublas" in caplog.text


def test_a_runtime_without_cuda_is_said(monkeypatch):
    monkeypatch.setattr(session_module, "_has_gpu", lambda: True)
    monkeypatch.setattr(session_module.onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(DeviceUnavailable, match="built without it"):
        open_session(b"", "cuda")


@pytest.fixture
def cpu_as_gpu(monkeypatch):
    """What the service does with a GPU, done on a CPU: the sizes of the batches that were run, in order."""
    real, sizes = model_module.open_session, []

    class Counting(OnnxSession):
        def run(self, images):
            sizes.append(len(images))
            if len(images) > most:
                raise OutOfMemory("CUDA failure 2: out of memory")
            return super().run(images)

    def opened(model, device):
        session = Counting(real(model, "cpu")._session)
        session.device = "cuda"
        return session

    most = 99
    monkeypatch.setattr(model_module, "open_session", opened)

    def has_memory_for(windows: int) -> None:
        nonlocal most
        most = windows

    return sizes, has_memory_for


def test_a_gpu_has_run_a_batch_of_each_size_before_anything_is_served(cpu_as_gpu):
    sizes, _ = cpu_as_gpu
    segmenter = load_segmenter(ModelChoice(DEFAULT_BUNDLE, "cuda", max_batch_size=9))
    assert sizes[-4:] == [1, 2, 4, 8]
    assert segmenter.device == "cuda"


def test_a_gpu_runs_no_batch_before_it_serves_that_it_would_not_run_then():
    sizes: list[int] = []
    session = SimpleNamespace(run=lambda images: sizes.append(len(images)))
    limits = model_module._warmed_up(session, np.zeros((1, 8, 8, 3), np.uint8), 4, BatchLimits(1, 32, pixels=3 * 64))
    assert sizes == [1, 1, 2]
    assert limits.warm == {(1, 4, 4, 3), (1, 8, 8, 3), (2, 8, 8, 3)}


async def test_a_model_that_the_device_has_lost_ends_the_service():
    segmenter = load_segmenter(ModelChoice(DEFAULT_BUNDLE, "cpu"))
    image = np.zeros((64, 64, 3), np.uint8)
    ended: list[bool] = []

    def lost(*_):
        raise RuntimeError("CUDA failure 999: unknown error")

    await segmenter.start(Metrics(CollectorRegistry()), lambda: ended.append(True))
    assert (await segmenter.segment(image)).class_map.shape == (64, 64)
    segmenter._session._session = SimpleNamespace(run=lost)
    with pytest.raises(ModelNotReady, match="starts anew"):
        await segmenter.segment(image)
    assert not segmenter.ready
    await segmenter.close()
    assert ended == [True]


def test_a_gpu_without_memory_for_a_size_says_so_and_serves(cpu_as_gpu, caplog):
    sizes, has_memory_for = cpu_as_gpu
    has_memory_for(3)
    segmenter = load_segmenter(ModelChoice(DEFAULT_BUNDLE, "cuda"))
    assert sizes[-3:] == [1, 2, 4]
    assert segmenter._limits.windows == 32  # beside another model, as for a reload, memory lacks for a moment
    assert {form[0] for form in segmenter._limits.warm} == {1, 2}
    assert "there is no memory now for batches of 4 windows: CUDA failure 2: out of memory" in caplog.text


def test_a_graph_that_takes_fewer_windows_gets_no_more_and_that_is_said(caplog):
    def run(images):
        if len(images) > 2:
            raise RuntimeError("Got invalid dimensions for input: image")

    limits = model_module._warmed_up(
        SimpleNamespace(run=run), np.zeros((1, 8, 8, 3), np.uint8), 8, BatchLimits(1, 32, 10**6)
    )
    assert limits.windows == 2
    assert "batches of 4 windows cannot be run, so they have at most 2: Got invalid dimensions" in caplog.text


def test_a_gpu_that_is_slow_to_get_ready_is_not_waited_for_for_ever(monkeypatch, caplog):
    monkeypatch.setattr(model_module, "_WARM_UP_SECONDS", 0.0)
    sizes: list[int] = []
    session = SimpleNamespace(run=lambda images: (sizes.append(len(images)), time.sleep(0.01)))
    model_module._warmed_up(session, np.zeros((1, 8, 8, 3), np.uint8), 8, BatchLimits(1, 32, 10**6))
    assert sizes in ([], [1])
    assert "slow to get ready" in caplog.text
