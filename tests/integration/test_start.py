"""What keeps the service from starting: each is said in one line, with what would be right, and ends with a status."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from app.cli import main
from app.errors import AddressUnavailable
from app.inference.session import _has_gpu
from app.pathology.manifest import GOLDEN_FILE, MANIFEST_FILE, MODEL_FILE
from app.server import bind
from app.settings import DEFAULT_BUNDLE
from tests.conftest import ROOT
from tests.fuzz.service import processes_of
from tests.waiting import until

WRONG_SETTING, CANNOT_START = 2, 1
ANEW = "; copy the bundle anew, or export it anew"


def refused(*flags: str, port: int = 0, **environment: str) -> tuple[int, str]:
    """Return the status of a service that does not start, and the one line that it writes."""
    ended = subprocess.run(
        [sys.executable, "-m", "app.cli", "serve", "--port", str(port), *flags],
        check=False,
        cwd=ROOT,
        env={"PATH": "", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.stdout == ""
    [line] = ended.stderr.splitlines()
    return ended.returncode, line


@pytest.fixture
def refused_early(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """As `refused`, for what the command refuses before it makes a process: in this one, which is faster."""
    monkeypatch.setattr("app.telemetry.logging.configure", lambda *_: None)  # the tests' log stays theirs

    def refused_here(*flags: str, port: int = 0, **environment: str) -> tuple[int, str]:
        ended = CliRunner(env=environment).invoke(main, ["serve", "--port", str(port), *flags])
        assert ended.stdout == ""
        [line] = ended.stderr.splitlines()
        return ended.exit_code, line

    return refused_here


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The shipped bundle, file by file a link, to be replaced."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    for name in (MANIFEST_FILE, MODEL_FILE, GOLDEN_FILE):
        (folder / name).symlink_to(DEFAULT_BUNDLE / name)
    return folder


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def state(bundle: Path, **changes: object) -> None:
    manifest = json.loads((bundle / MANIFEST_FILE).read_text()) | changes
    replace(bundle / MANIFEST_FILE, json.dumps(manifest).encode())


def cut_short(bundle: Path) -> None:
    replace(bundle / MODEL_FILE, (bundle / MODEL_FILE).read_bytes()[:100_000])


def damaged_and_signed(bundle: Path) -> None:
    cut_short(bundle)
    state(bundle, sha256=hashlib.sha256((bundle / MODEL_FILE).read_bytes()).hexdigest())


def other_golden_pair(bundle: Path) -> None:
    with np.load(bundle / GOLDEN_FILE) as golden:
        arrays = {**golden, "class_map": 3 - golden["class_map"]}
    file = BytesIO()
    np.savez(file, **arrays)
    replace(bundle / GOLDEN_FILE, file.getvalue())
    state(bundle, golden_sha256=hashlib.sha256(file.getvalue()).hexdigest())


def wrong_manifest(bundle: Path) -> None:
    state(bundle, stride="wide")


def no_model(bundle: Path) -> None:
    (bundle / MODEL_FILE).unlink()


@pytest.mark.parametrize(
    ("damage", "begins", "ends"),
    [
        (cut_short, "model.onnx: its SHA-256 is ", ANEW),
        (damaged_and_signed, "ONNX Runtime refuses the model: ", ""),
        (other_golden_pair, "does not reproduce its golden pair on cpu: ", ANEW),
        (wrong_manifest, "manifest.json: not a manifest: stride: Input should be a valid integer", ANEW),
        (no_model, "model.onnx: cannot be read: No such file", "; a bundle is a folder that holds it"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_bundle_that_cannot_be_served(bundle, damage: Callable[[Path], None], begins, ends):
    damage(bundle)
    status, line = refused("--device", "cpu", "--bundle", str(bundle))
    assert status == CANNOT_START
    assert line.startswith("Error: ")
    assert begins in line
    assert line.endswith(ends)


def test_a_model_that_takes_the_process_that_loads_it_with_it(bundle):
    (bundle / MODEL_FILE).unlink()
    os.mkfifo(bundle / MODEL_FILE)  # to load it takes for ever
    command = [sys.executable, "-m", "app.cli", "serve", "--port", "0", "--bundle", str(bundle), "--device", "cpu"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as service:
        until(lambda: len(processes_of(service.pid)) > 1)
        [loading] = set(processes_of(service.pid)) - {service.pid}
        os.kill(loading, signal.SIGSEGV)  # as a runtime does that meets with a graph it has a fault for
        lines = service.communicate(timeout=30)[1].splitlines()
    assert service.returncode == CANNOT_START
    assert lines == ["Error: the process model trial ended by itself (signal SIGSEGV)"]


@contextmanager
def loading_for_ever(bundle: Path, patches: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Yield a service whose engine, of this process id, never ends to load its model, with parts of it replaced."""
    (bundle / MODEL_FILE).unlink()
    os.mkfifo(bundle / MODEL_FILE)
    program = f"from app.processes import children, supervisor\nfrom app.cli import main\n{patches}\nmain()"
    flags = ("--port", "0", "--bundle", str(bundle), "--device", "cpu", "--engine", "shared", "--fronts", "1")
    command = [sys.executable, "-c", program, "serve", *flags]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as service:
        try:
            until(lambda: len(processes_of(service.pid)) > 1)
            [engine] = set(processes_of(service.pid)) - {service.pid}
            yield service, engine
        finally:
            service.kill()
            with suppress(OSError):  # nobody loads it any more
                os.close(os.open(bundle / MODEL_FILE, os.O_WRONLY | os.O_NONBLOCK))


def test_an_engine_that_never_has_its_model_is_not_waited_for_for_ever(bundle):
    with loading_for_ever(bundle, "supervisor._READY_SECONDS = 3") as (service, engine):
        lines = service.communicate(timeout=30)[1].splitlines()
    assert service.returncode == CANNOT_START
    assert [line for line in lines if line.startswith("Error")] == ["Error: not ready within 3 s: engine"]
    assert not Path(f"/proc/{engine}").exists()


@pytest.mark.parametrize("is_told", [False, True])
def test_a_process_that_nobody_can_end_does_not_keep_the_service_from_ending(bundle, is_told):
    """As one that waits in a GPU's driver: the system keeps it, killed, until the driver comes back."""
    patches = "supervisor._READY_SECONDS = 3; children._LAST_SECONDS = 1; children.ForkProcess.kill = lambda _: None"
    with loading_for_ever(bundle, patches) as (service, engine):
        if is_told:
            service.send_signal(signal.SIGTERM)
        status = service.wait(30)
        os.kill(engine, signal.SIGKILL)  # it has the standard error too
        lines = service.communicate(timeout=30)[1].splitlines()
    assert status == CANNOT_START
    assert lines[-1].endswith("killed, and still there: engine")
    assert any("not ready within 3 s: engine" in line for line in lines) != is_told


def test_a_front_that_gets_no_thread_for_images(tmp_path):
    """As beyond a container's limit on processes, which counts threads."""
    program = """
import threading
from app.cli import main
start = threading.Thread.start
def refuse(thread):
    if thread.name.startswith("worker"):
        raise RuntimeError("can't start new thread")
    start(thread)
threading.Thread.start = refuse
main()
"""
    serve = ["serve", "--port", "0", "--device", "cpu", "--cores", "2"]
    segment = ["segment", str(ROOT / "examples" / "patches"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    for arguments in ([*serve], [*serve, "--fronts", "1"], segment):
        command = [sys.executable, "-c", program, *arguments]
        ended = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert ended.returncode == CANNOT_START
        line = ended.stderr.splitlines()[-1]
        assert "a thread for images does not start: can't start new thread; raise the limit" in line
        assert "Traceback" not in ended.stderr


def test_a_provider_that_is_not_there():
    if _has_gpu():
        pytest.skip("this machine has a GPU")
    status, line = refused("--device", "cuda")
    assert status == CANNOT_START
    assert line == ("Error: CUDA cannot be used: no NVIDIA GPU with a working driver (or set TESSERA_DEVICE=cpu)")


def test_a_port_that_is_in_use(refused_early):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, line = refused_early("--device", "cpu", port=port)
    assert status == CANNOT_START
    assert line == f"Error: cannot listen on 127.0.0.1:{port}: address already in use; choose another --host or --port"


@pytest.mark.parametrize(
    ("host", "reason"),
    [("192.0.2.1", "cannot assign requested address"), ("no.such.host.invalid", "")],  # RFC 5737, RFC 2606
)
def test_an_address_of_no_machine_or_another(refused_early, host, reason):
    status, line = refused_early("--device", "cpu", "--host", host)
    assert status == CANNOT_START
    assert line.startswith(f"Error: cannot listen on {host}:0: {reason}")
    assert line.endswith("; choose another --host or --port")


def test_a_port_that_is_not_allowed(monkeypatch):
    """Who runs the tests may be allowed any."""
    denied: list[socket.socket] = []

    def deny(listener: socket.socket, _: object) -> None:
        denied.append(listener)
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", deny)
    with pytest.raises(AddressUnavailable) as caught:
        bind("127.0.0.1", 80)
    assert str(caught.value) == "cannot listen on 127.0.0.1:80: permission denied; choose another --host or --port"
    assert [listener.fileno() for listener in denied] == [-1], "it is left open"


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ({"TESSERA_DEVICE": "tpu"}, "--device (TESSERA_DEVICE): Input should be 'auto', 'cpu' or 'cuda'"),
        (
            {"TESSERA_KEYS_FILE": ""},
            "--keys-file (TESSERA_KEYS_FILE): is empty; leave it out, or name a file or folder",
        ),
        ({"TESSERA_BUNDLE": ""}, "--bundle (TESSERA_BUNDLE): is empty; leave it out, or name a file or folder"),
        ({"TESSERA_QUEUE_CAPACITY": "3"}, "--max-files (64) must not exceed --queue-capacity (3)"),
    ],
)
def test_a_setting_that_makes_no_sense(refused_early, setting, line):
    assert refused_early(**setting) == (WRONG_SETTING, f"Error: {line}")


@pytest.mark.parametrize("flag", ["--bundle", "--keys-file", "--tls-cert"])
def test_a_flag_whose_variable_was_not_set_is_not_the_folder_one_is_in(refused_early, flag):
    variable = "TESSERA_" + flag.removeprefix("--").replace("-", "_").upper()
    line = f"Error: {flag} ({variable}): is empty; leave it out, or name a file or folder"
    assert refused_early(flag, "") == (WRONG_SETTING, line)


@pytest.mark.parametrize(
    ("setting", "status", "words"),
    [
        ({"TESSERA_DEVICE": "tpu"}, WRONG_SETTING, "--device (TESSERA_DEVICE): Input should be"),
        ({"TESSERA_KEYS_FILE": "/none"}, CANNOT_START, "/none"),
    ],
)
def test_where_the_log_is_json_so_is_the_line_that_says_why(setting, status, words):
    for flags, environment in (((), {"TESSERA_LOG_FORMAT": "json"}), (("--log-format", "json"), {})):
        ended, line = refused(*flags, **environment, **setting)
        told = json.loads(line)
        assert (ended, told["level"]) == (status, "critical")
        assert words in told["message"]


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--keys-file", "{path}: no such file or directory; tessera keys new --file makes a file of keys"),
        ("--tls-cert", "{path}: no such file or directory; TLS needs a certificate and its key, PEM"),
        ("--audit-log", "the audit log {path}: no such file or directory; choose a file that can be appended to"),
    ],
    ids=["keys", "certificate", "audit log"],
)
def test_a_file_that_is_not_there(tmp_path, flag, words):
    path = tmp_path / "none" / "file"
    assert refused(flag, str(path)) == (CANNOT_START, f"Error: {words.format(path=path)}")


def test_a_file_of_keys_that_others_may_write_to(tmp_path):
    path = tmp_path / "keys"
    path.touch()
    path.chmod(0o666)
    assert refused("--keys-file", str(path)) == (
        CANNOT_START,
        f"Error: {path}: others may write to it, and so let themselves in; chmod go-w",
    )


def early(number: signal.Signals, *command: str) -> tuple[int, str]:
    """Return the status and words of a command that got a signal while it imports what it needs."""
    program = f"""if True:
        import os, sys
        class Signalled:
            def find_spec(self, name, path=None, target=None):
                if name == "numpy":
                    sys.meta_path.remove(self)
                    os.kill(os.getpid(), {int(number)})
        sys.meta_path.insert(0, Signalled())
        from app.cli import main
        main()
    """
    command_line = [sys.executable, "-c", program, *command]
    ended = subprocess.run(
        command_line, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )
    return ended.returncode, ended.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_service_told_to_end_in_its_first_moments_ends_well_and_in_silence(number):
    assert early(number, "serve", "--port", "0") == (0, "")


def test_a_service_told_to_reload_in_its_first_moments_goes_on():
    status, said = early(signal.SIGHUP, "serve", "--port", "0", "--keys-file", "/none")
    assert status == CANNOT_START
    assert said.startswith("Error: /none: no such file")


def test_a_command_that_is_interrupted_in_its_first_moments_says_so_in_a_line():
    assert early(signal.SIGINT, "segment", str(ROOT / "examples"), "--out", "/none") == (1, "\nAborted!\n")
