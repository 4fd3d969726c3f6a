"""Which processes the service is made of."""

import pytest
from pydantic import ValidationError

from app.processes import layout as module
from app.processes.layout import Layout, layout_of
from app.settings import Settings


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
    assert layout_of(Settings(cores=cores)) == Layout(fronts, shared_engine=False, supervised=True)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("cores", "fronts"), [(1, 1), (2, 2), (16, 14), (64, 16)])
def test_with_a_gpu_one_engine_has_it(cores, fronts):
    assert layout_of(Settings(cores=cores)) == Layout(fronts, shared_engine=True, supervised=True, on_gpu=True)


@pytest.mark.parametrize("few", [{"fronts": 1}, {"sectra_hosts": "pacs.example"}])
def test_cuda_is_never_forked_nor_loaded_by_a_front_that_is_alone(gpu, few):
    for device in ("auto", "cuda"):
        assert layout_of(Settings(cores=8, device=device, **few)) == Layout(
            1, shared_engine=True, supervised=True, on_gpu=True
        )


@pytest.mark.usefixtures("gpu")
def test_a_gpu_that_is_not_to_be_used_changes_nothing():
    assert layout_of(Settings(cores=16, device="cpu")) == Layout(2, shared_engine=False, supervised=True)


@pytest.mark.usefixtures("no_gpu")
def test_an_engine_may_be_asked_for_on_a_cpu():
    assert layout_of(Settings(cores=16, engine="shared")) == Layout(2, shared_engine=True, supervised=True)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_elsewhere_than_on_linux_it_is_one_process(monkeypatch, device):
    monkeypatch.setattr(module.sys, "platform", "win32")
    assert layout_of(Settings(cores=8, device=device)) == Layout(1, shared_engine=False, supervised=False, on_gpu=True)


@pytest.mark.usefixtures("no_gpu")
def test_sectras_orders_stay_in_one_process():
    assert layout_of(Settings(cores=8, sectra_hosts="pacs.example")).fronts == 1
    with pytest.raises(ValidationError, match="must be 1 with --sectra-hosts"):
        Settings(cores=8, sectra_hosts="pacs.example", fronts=2)
