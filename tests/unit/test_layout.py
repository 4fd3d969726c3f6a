"""Which processes the service is made of."""

import pytest
from pydantic import ValidationError

from app import settings as module
from app.settings import Layout, Settings, layout_of


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    node = tmp_path / "nvidiactl"
    node.touch()
    monkeypatch.setattr(module, "_GPU_NODES", (str(node),))


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(module, "_GPU_NODES", ())


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(("cores", "fronts"), [(1, 1), (2, 2), (16, 2), (32, 4), (256, 16)])
def test_on_a_cpu_each_front_has_the_model(cores, fronts):
    assert layout_of(Settings(cores=cores)) == Layout(fronts, shared_engine=False, on_gpu=False, supervised=True)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("cores", "fronts"), [(2, 2), (16, 14), (64, 16)])
def test_with_a_gpu_one_engine_has_it(cores, fronts):
    assert layout_of(Settings(cores=cores)) == Layout(fronts, shared_engine=True, on_gpu=True, supervised=True)


@pytest.mark.usefixtures("gpu")
def test_cuda_is_never_forked():
    assert layout_of(Settings(cores=8, engine="own")).fronts == 1
    with pytest.raises(ValidationError, match="CUDA cannot be forked"):
        Settings(cores=8, engine="own", fronts=2)


@pytest.mark.usefixtures("no_gpu")
def test_sectras_orders_stay_in_one_process():
    assert layout_of(Settings(cores=8, sectra_hosts="pacs.example")).fronts == 1
    with pytest.raises(ValidationError, match="must be 1 with --sectra-hosts"):
        Settings(cores=8, sectra_hosts="pacs.example", fronts=2)
