"""The dtype that a device truly has, and the device that a model goes to."""

import re

import pytest
import torch

from sloth_nb import is_bf16_supported, is_bfloat16_supported
from sloth_nb.errors import HardwareError, ModelError, SlothWarning
from sloth_nb.models.devices import best_device, choose_device_map, main_device
from sloth_nb.models.precision import choose_dtype

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def gpus(monkeypatch):
    """Pretends to have GPUs of a compute capability, which torch says can do bf16 as it says of a T4."""

    def pretend(capability, count=1):
        monkeypatch.delenv("LOCAL_RANK", raising=False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla T4")
        monkeypatch.setattr(torch.version, "hip", None)

    return pretend


def test_a_t4_has_no_bf16_although_torch_says_so(gpus):
    gpus((7, 5))
    assert torch.cuda.is_bf16_supported()
    assert not is_bf16_supported()
    assert not is_bfloat16_supported()
    assert choose_dtype(None, CUDA) == torch.float16
    with pytest.warns(SlothWarning, match="Tesla T4 has no bfloat16; torch.float16 is used"):
        assert choose_dtype(torch.bfloat16, CUDA) == torch.float16


def test_ampere_and_later_have_bf16(gpus):
    gpus((8, 0))
    assert is_bf16_supported()
    assert choose_dtype("auto", CUDA) == torch.bfloat16


@pytest.fixture(params=[True, False], ids=["bf16 CPU", "AVX2 CPU"])
def cpu_has_bf16(request, monkeypatch):
    """Pretends to have a CPU on which oneDNN multiplies bf16, or doesn't."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: request.param)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    return request.param


def test_a_cpu_has_bf16_where_onednn_multiplies_it(cpu_has_bf16):
    assert is_bf16_supported(CPU) is cpu_has_bf16
    assert choose_dtype(None, CPU) == (torch.bfloat16 if cpu_has_bf16 else torch.float32)


def test_a_cpu_without_onednn_has_no_bf16(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert choose_dtype(None, CPU) == torch.float32


@pytest.mark.parametrize("name", ["bfloat16", "bf16", "torch.bfloat16", torch.bfloat16])
def test_a_dtype_may_be_given_by_name_and_is_taken_also_where_it_is_slow(name, cpu_has_bf16, recwarn):
    assert choose_dtype(name, CPU) == torch.bfloat16
    said = [str(warning.message) for warning in recwarn]
    assert len(said) == (not cpu_has_bf16) and all("many times slower" in one for one in said)


def test_float16_on_a_cpu_becomes_its_best_with_a_warning(cpu_has_bf16):
    best = torch.bfloat16 if cpu_has_bf16 else torch.float32
    with pytest.warns(SlothWarning, match=f"float16 can't be trained on a CPU .*; {best} is used"):
        assert choose_dtype("float16", CPU) == best


@pytest.mark.parametrize("dtype", ["int8", torch.int32, "bfloat61", 16])
def test_another_type_is_refused(dtype):
    with pytest.raises(ModelError, match="not a type that a model is loaded in"):
        choose_dtype(dtype, CPU)


def test_two_gpus_without_a_launcher_use_one_and_name_the_way_to_use_both(gpus):
    gpus((7, 5), count=2)
    with pytest.warns(
        SlothWarning, match=r"2 GPUs are visible.*notebook_launcher\(function, num_processes=2\)"
    ):
        assert choose_device_map("sequential") == {"": CUDA}


def test_under_a_launcher_each_process_takes_its_own_gpu_without_a_word(gpus, monkeypatch, recwarn):
    gpus((7, 5), count=2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device_map("sequential") == {"": torch.device("cuda", 1)}
    assert choose_device_map("balanced") == {"": torch.device("cuda", 1)}
    assert not recwarn


def test_two_gpus_may_be_asked_to_share_the_layers(gpus, recwarn):
    gpus((7, 5), count=2)
    assert choose_device_map("balanced") == "balanced"
    assert main_device("balanced") == CUDA
    assert not recwarn


def test_a_device_or_a_dict_of_placements_is_taken_as_it_is(gpus):
    gpus((8, 0), count=2)
    assert choose_device_map("cuda:1") == {"": torch.device("cuda", 1)}
    assert choose_device_map(torch.device("cpu")) == {"": CPU}
    split = {"model.embed_tokens": "cpu", "model": 1}
    assert choose_device_map(split) is split
    assert main_device({"a": "cpu", "b": "disk"}) == CPU
    assert main_device({"a": "cpu", "b": "cuda:1"}) == torch.device("cuda", 1)


def test_a_gpu_beyond_those_there_are_is_refused(gpus):
    gpus((8, 0), count=2)
    with pytest.raises(HardwareError, match="this machine has 2 cuda devices"):
        choose_device_map("cuda:2")


def test_without_any_accelerator_it_is_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if not torch.backends.mps.is_available():
        assert best_device() == CPU
        assert choose_device_map("auto") == {"": CPU}


@pytest.mark.parametrize("place", [0, "cuda:0", torch.device("cuda", 1), "mps"])
def test_every_place_of_a_dict_must_be_there(place, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    for requested in ({"": place}, {"model": "cpu", "lm_head": place}, place):
        with pytest.raises(
            HardwareError, match=f"device_map={re.escape(repr(requested))}, but this machine has no "
        ):
            choose_device_map(requested)


def test_a_dict_of_places_that_are_there_is_taken_as_it_is():
    requested = {"model": "cpu", "lm_head": "disk", "rest": torch.device("cpu")}
    assert choose_device_map(requested) == requested
    with pytest.raises(HardwareError, match="neither a device nor a placement"):
        choose_device_map({"": "gpu"})
