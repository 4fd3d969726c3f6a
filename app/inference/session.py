"""The one serving file that imports onnxruntime: a session on a device, and the truth about which one it got."""

import contextlib
import ctypes
import io
import logging
import os
import re
import sys

# The runtime's packages keep a database of usage events and send it to Microsoft, unless this is set before they load.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import numpy as np
import onnxruntime

from app.errors import DeviceUnavailable, InvalidBundle, OutOfMemory
from app.inference.result import NO_MEMORY, BatchResult
from app.inference.segmenter import Device, DeviceChoice
from app.pathology.arrays import RgbBatch
from app.pathology.manifest import GRAPH_INPUT, GRAPH_OUTPUTS

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_ERRORS_ONLY = 3
_RUNS_THAT_GIVE_BACK = 8
"""How many runs give memory back: a large one and those after it. Counted without a lock: one more does no harm."""
_LARGE_BYTES = 3 * 512**2
"""The size of a batch that takes a tenth of a second: giving memory back and taking it again costs little beside it."""
_NO_MEMORY = re.compile(r"failed to allocate memory|out of memory|bad[ _]alloc|_ALLOC_FAILED", re.IGNORECASE)
"""How the runtime's arena, CUDA, C++ and cuDNN or cuBLAS say it; the kind of exception does not tell."""
_log = logging.getLogger(__name__)


class OnnxSession:
    """A loaded graph. `run` may be called from several threads at once.

    Attributes:
        device: The device that the runtime really uses.
        provider: ONNX Runtime's name of it, the first of the session's own list.
    """

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self.provider: str = session.get_providers()[0]
        self.device: Device = "cuda" if self.provider == _CUDA else "cpu"
        self._giving_back = _giving_back_memory() if self.device == "cpu" else None
        self._to_give_back = 0

    def run(self, images: RgbBatch) -> BatchResult:
        """Run one batch, (N, H, W, 3) uint8 with sides that are multiples of the model's stride.

        Raises:
            OutOfMemory: There is no memory for it on the device; fewer or smaller images may do.
            Exception: The runtime fails, with errors that share no base of their own.
        """
        # Nothing is given back of what another lane's run uses as this one ends: those after it try again.
        self._to_give_back = _RUNS_THAT_GIVE_BACK if images.size >= _LARGE_BYTES else max(0, self._to_give_back - 1)
        options = self._giving_back if self._to_give_back else None
        try:
            outputs = self._session.run(list(GRAPH_OUTPUTS), {GRAPH_INPUT: images}, options)
        except Exception as error:
            if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
                raise OutOfMemory(NO_MEMORY) from error
            raise
        class_maps, confidences, probabilities = outputs
        return BatchResult(class_maps, confidences, probabilities)

    def give_back(self, images: RgbBatch) -> None:
        """Have a CPU's arena give back all that it does not use, while no other run uses any.

        It does so as a run ends, of `images`, and keeps whatever that run's own outputs lie in: these lie elsewhere.
        """
        if self._giving_back is None:
            return
        outputs = [np.empty_like(output) for output in self._session.run(list(GRAPH_OUTPUTS), {GRAPH_INPUT: images})]
        binding = self._session.io_binding()
        binding.bind_cpu_input(GRAPH_INPUT, images)
        for name, output in zip(GRAPH_OUTPUTS, outputs, strict=True):
            binding.bind_ortvalue_output(name, onnxruntime.OrtValue.ortvalue_from_numpy(output))
        self._session.run_with_iobinding(binding, self._giving_back)


def _giving_back_memory() -> onnxruntime.RunOptions:
    """Return options for a run after which the arena gives back what it does not use; else it keeps the most it had."""
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def open_session(model: bytes, device: DeviceChoice) -> OnnxSession:
    """Load a serialised graph onto a device.

    On the CPU each run keeps to one thread: lanes, not operators, share the cores. `auto` takes CUDA where the
    machine has an NVIDIA GPU, and says in the log when it has one and CUDA does not come up.

    Raises:
        DeviceUnavailable: `cuda` was asked for and the session did not get it.
        InvalidBundle: The runtime refuses the graph.
    """
    if device == "cuda" or (device == "auto" and _has_gpu()):
        try:
            return _open_cuda(model)
        except DeviceUnavailable as error:
            if device == "cuda":
                raise
            _log.warning("a GPU is present but not used; running on the CPU: %s", error)
    return OnnxSession(_new_session(model, [_CPU]))


def _open_cuda(model: bytes) -> OnnxSession:
    """Return a session that really runs on CUDA.

    Raises:
        DeviceUnavailable: It does not; the message says what is missing.
    """
    if not _has_gpu():
        raise DeviceUnavailable("CUDA cannot be used: no NVIDIA GPU with a working driver (or set TESSERA_DEVICE=cpu)")
    if _CUDA not in onnxruntime.get_available_providers():
        raise DeviceUnavailable("CUDA cannot be used: this platform's onnxruntime is built without it")
    # CUDA and cuDNN from their PyPI packages; without this only system libraries are found. It prints what it lacks.
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        onnxruntime.preload_dlls()
    options = {"cudnn_conv_algo_search": "HEURISTIC"}  # no exhaustive search anew for each shape
    session = OnnxSession(_new_session(model, [(_CUDA, options), _CPU]))
    # The list of available providers names CUDA even where its libraries are missing; only the session's own tells.
    if session.device != "cuda":
        lacking = printed.getvalue().strip().splitlines() or ["ONNX Runtime did not say why"]
        raise DeviceUnavailable(f"CUDA cannot be used: install requirements/cuda.txt ({lacking[0]})")
    return session


def _new_session(model: bytes, providers: list[object]) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    try:
        return onnxruntime.InferenceSession(model, options, providers=providers)
    except Exception as error:  # onnxruntime's exceptions share no base of their own
        raise InvalidBundle(
            f"ONNX Runtime refuses the model: {(str(error) or type(error).__name__).splitlines()[0]}"
        ) from error


def _has_gpu() -> bool:
    """Whether NVIDIA's driver is there and initialises."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
