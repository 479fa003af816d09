"""Cards by any spelling, and what hosts lend."""

import pytest

from sloth_nb import catalog
from sloth_nb.errors import HardwareError


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("t4", "T4"),
        ("Tesla T4", "T4"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("a100", "A100-40GB"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 4060 Ti 16GB", "RTX 4060 Ti 16GB"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L4", "L4"),
        ("Tesla V100-SXM2-32GB", "V100-32GB"),
        ("NVIDIA A10G", "A10"),
    ],
)
def test_a_card_is_known_by_any_of_its_names(said, meant):
    assert catalog.gpu(said).name == meant


def test_an_unknown_card_names_the_nearest():
    with pytest.raises(HardwareError, match="RTX 4090"):
        catalog.gpu("RTX 4099")


def test_only_ampere_and_later_compute_in_bf16():
    assert not catalog.gpu("T4").bf16 and not catalog.gpu("V100").bf16
    assert catalog.gpu("A100").bf16 and catalog.cpu(16).bf16


def test_kaggle_lends_two_t4():
    lent = catalog.offer("kaggle t4x2")
    assert (lent.gpu.name, lent.count) == ("T4", 2)
    with pytest.raises(HardwareError, match="Colab"):
        catalog.offer("Colab TPU")
