"""What the runtime is told, on devices that need not be here."""

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from app.inference import session as session_module
from app.inference.bundle import load_bundle
from app.inference.session import OnnxSession, open_session
from app.processes.memory import give_back_large_pieces
from tests.conftest import SERVED_BUNDLE


class Runtime:
    """Stands in for ONNX Runtime's session: remembers what it was opened with, and how it was run."""

    def __init__(self, providers: list[object], options: object) -> None:
        self.providers = providers
        self.options = options
        self.runs: list[object] = []

    def get_providers(self) -> list[str]:
        return [provider[0] if isinstance(provider, tuple) else provider for provider in self.providers]

    def run(self, names: list[str], inputs: dict[str, np.ndarray], options: object) -> list[np.ndarray]:
        self.runs.append(options)
        return [np.zeros(1)] * len(names)


@pytest.fixture
def opened(monkeypatch) -> list[Runtime]:
    """Sessions in the order in which they were opened; CUDA seems to be there."""
    sessions: list[Runtime] = []
    runtime = session_module.onnxruntime

    def open_one(model: bytes, options: object, providers: list[object]) -> Runtime:
        sessions.append(Runtime(providers, options))
        return sessions[-1]

    monkeypatch.setattr(session_module, "_has_gpu", lambda: True)
    monkeypatch.setattr(runtime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(runtime, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(runtime, "InferenceSession", open_one)
    return sessions


def test_no_new_shape_starts_a_search_for_the_fastest_convolution(opened):
    assert open_session(b"", "cuda").device == "cuda"
    [(name, options), _] = opened[0].providers
    assert (name, options["cudnn_conv_algo_search"]) == ("CUDAExecutionProvider", "HEURISTIC")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_runtime_is_told_how_many_threads_it_has(opened, device):
    """Left to itself it binds threads to cores, which fails where a container has but some of them."""
    open_session(b"", device)
    assert (opened[0].options.intra_op_num_threads, opened[0].options.inter_op_num_threads) == (1, 1)


def test_memory_of_large_batches_is_given_back():
    runtime = Runtime(["CPUExecutionProvider"], None)
    session = OnnxSession(runtime)
    for side in (64, 1024, *[64] * 9):
        session.run(np.zeros((1, side, side, 3), np.uint8))
    small, *giving_back, late, later = runtime.runs
    assert small is late is later is None
    assert len(giving_back) == 8, "those after it try again: another lane may have used it"
    for options in giving_back:
        assert options.get_run_config_entry("memory.enable_memory_arena_shrinkage") == "cpu:0"


def own_anonymous_bytes():
    """Return what this process has that no file is behind, by proc(5): nothing that another shares or lets go of."""
    return 1024 * int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0])


def memory_of_a_process_at_rest():
    """Return the bytes before a session's runs, after them, and after it has given back."""
    give_back_large_pieces()
    model = load_bundle(SERVED_BUNDLE).model
    for session in [open_session(model, "cpu") for _ in range(2)]:  # what a process takes but once the first takes
        # As when a service starts. A session's first run also takes, once, what is left of the regions that hold packed
        # weights: 3.5 MiB of this model.
        session.run(np.zeros((1, 224, 224, 3), np.uint8))
        session.give_back(np.zeros((1, 32, 32, 3), np.uint8))
        before = own_anonymous_bytes()
        for side in (224, 224, 224, 480):
            session.run(np.zeros((1, side, side, 3), np.uint8))
        held = own_anonymous_bytes()
        session.give_back(np.zeros((1, 32, 32, 3), np.uint8))
        after = own_anonymous_bytes()
    return before, held, after


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_at_rest_all_is_given_back():
    """Also what the last run's own outputs would lie in; and patches of this size do not count as large.

    In a process of its own: what other tests left behind grows and shrinks by itself.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
        before, held, after = alone.submit(memory_of_a_process_at_rest).result(timeout=60)
    assert held > before + 24 * 2**20
    assert after < before + 3 * 2**20


def test_a_gpu_is_not_asked_to_give_back():
    runtime = Runtime(["CUDAExecutionProvider", "CPUExecutionProvider"], None)
    OnnxSession(runtime).give_back(np.zeros((1, 32, 32, 3), np.uint8))
    assert not runtime.runs
