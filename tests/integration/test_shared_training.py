import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model_export.checkpoint import read_checkpoint
from model_export.errors import InvalidRecipe, Unavailable
from model_export.network import TissueNetwork
from model_export.training.hardware import Hardware, opened
from tests.model_export_support import one_thread, recipe
from tests.shared_training import train

ROOT = Path(__file__).parent.parent.parent
PATIENCE_SECONDS = 240


def shared(run, processes):
    """Train in `processes` that torchrun starts."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    torchrun += ["--log-dir", str(run.with_name(f"{run.name}-log"))]  # else a folder in /tmp that stays
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *torchrun, str(ROOT / "tests" / "shared_training.py"), str(run)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr


def losses_of(run):
    with (run / "steps.csv").open(encoding="utf-8", newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_two_processes_learn_what_one_does(tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    with one_thread():
        torch.manual_seed(recipe().seed)
        fresh = TissueNetwork(dropout=0.0).state_dict()
        train(alone, Hardware())

    shared(together, 2)

    assert (together / "seen-by-1-of-2").exists()
    assert losses_of(together) == pytest.approx(losses_of(alone), rel=1e-5)
    ours, theirs = (read_checkpoint(run / "last.pth").state for run in (together, alone))
    before = fresh["segment.1.weight"]
    assert (theirs["network"]["segment.1.weight"] - before).abs().max() > 1e-3, "this training was to learn"
    for name, value in theirs["network"].items():
        torch.testing.assert_close(ours["network"][name], value, rtol=1e-4, atol=1e-5)
    # Adam's step does not depend on the gradient's scale; its moments do.
    for index, moments in theirs["optimizer"]["state"].items():
        found = ours["optimizer"]["state"][index]["exp_avg"]
        torch.testing.assert_close(found, moments["exp_avg"], rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("processes", [3, 4])
def test_processes_share_a_batch_evenly_or_not_at_all(tmp_path, processes):
    reason = f"batch_size: 4 crops cannot be shared by {processes} processes: each needs the same number, two or more"
    with pytest.raises(InvalidRecipe, match=f"^{reason}$"):
        train(tmp_path / "run", Hardware(processes=processes))
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(Unavailable, match="wants a GPU of its own and torch sees 0: pass --device cpu"), opened("cuda"):
        pass


def test_no_gpu_is_needed():
    with opened("cpu", workers=3) as hardware:
        assert (hardware.device.type, hardware.rank, hardware.processes, hardware.workers) == ("cpu", 0, 1, 3)
