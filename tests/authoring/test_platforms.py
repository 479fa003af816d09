"""Platforms: which machines they lend, and what their notebooks carry."""

import pytest

from sloth_nb.authoring.platforms import platform, platforms
from sloth_nb.errors import HardwareError, NotebookError


def test_the_platforms_lend_what_the_catalogue_says():
    lent = {p.name: {m.name: (m.gpu.name, m.count) for m in p.machines} for p in platforms()}
    assert lent["colab"]["T4"] == ("T4", 1) and lent["colab"]["A100"] == ("A100-40GB", 1)
    assert lent["kaggle"]["T4x2"] == ("T4", 2) and lent["kaggle"]["P100"] == ("P100", 1)
    assert set(lent) == {"classroom", "colab", "jupyter", "kaggle"} and lent["jupyter"] == {}
    assert platform("classroom").machine().gpu.is_cpu and platform("classroom").machine().ram_gib == 2


@pytest.mark.parametrize("spelling", ["t4", "T4 x2", "2 × T4", "T4×2"])
def test_a_machine_is_found_in_any_spelling(spelling):
    assert platform("Kaggle").machine(spelling).name == "T4x2"
    with pytest.raises(HardwareError, match=r"Kaggle lends no 'A100'\. It has: T4x2, P100, CPU"):
        platform("kaggle").machine("A100")


def test_on_a_machine_of_ones_own_any_card_may_be_asked_for():
    jupyter = platform("jupyter")
    assert jupyter.machine().name == "RTX 4090" and jupyter.machine("h100").gpu.memory_gib > 79
    assert jupyter.machine("cpu").gpu.is_cpu and {"T4", "CPU"} <= set(jupyter.machine_names)
    with pytest.raises(HardwareError, match="Nearest"):
        jupyter.machine("RTX 4099")


def test_each_machine_s_metadata_is_right_for_its_platform():
    colab, kaggle = platform("colab"), platform("kaggle")
    assert colab.notebook_metadata(colab.machine("L4"))["colab"]["gpuType"] == "L4"
    assert "accelerator" not in colab.notebook_metadata(colab.machine("cpu"))
    settings = kaggle.notebook_metadata(kaggle.machine())["kaggle"]
    assert settings["accelerator"] == "nvidiaTeslaT4" and settings["isInternetEnabled"] is True
    assert "colab" not in kaggle.notebook_metadata(kaggle.machine())
    assert platform("jupyter").link("a.ipynb") == ""
    assert "notebooks/kaggle/a.ipynb" in kaggle.link("notebooks/kaggle/a.ipynb")


def test_an_unknown_platform_is_refused_with_the_nearest():
    with pytest.raises(NotebookError, match="Did you mean 'kaggle'"):
        platform("kagle")
