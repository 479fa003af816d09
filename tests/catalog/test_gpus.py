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
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100 80GB PCIe", "A100-80GB"),
        ("Tesla P100-PCIE-16GB", "P100"),
        ("A100 80 GiB", "A100-80GB"),
        ("t4 16gb", "T4"),
        ("RTX 3060 12GB", "RTX 3060"),
        ("Colab free", "T4"),
        ("colab a100 80gb", "A100-80GB"),
    ],
)
def test_a_card_is_known_by_any_of_its_names(said, meant):
    assert catalog.gpu(said).name == meant


def test_an_unknown_card_names_the_nearest():
    with pytest.raises(HardwareError, match="RTX 4090"):
        catalog.gpu("RTX 4099")


@pytest.mark.parametrize(
    ("said", "near"),
    [
        ("a100-80", "A100-80GB"),
        ("RTX 3060 Ti", "RTX 3060"),
        ("RTX 3060 8GB", "RTX 3060"),
        ("RTX 3080 Ti", "RTX 3080"),
        ("RTX 4060 Ti 8GB", "RTX 4060 Ti 16GB"),
        ("RTX 4070 Ti SUPER", "RTX 4070"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "RTX 4090"),
        ("A100-SXM4-40GB MIG 1g.5gb", "A100-40GB"),
        ("NVIDIA H100 NVL", "H100"),
        ("NVIDIA A10-24Q", "A10"),
        ("2x T4", "T4"),
    ],
)
def test_a_card_is_never_taken_for_another_whose_name_it_holds(said, near):
    with pytest.raises(HardwareError, match=rf"No card named {said!r}\. Nearest: .*{near}"):
        catalog.gpu(said)


@pytest.mark.parametrize("card", catalog.gpus(), ids=lambda card: card.name)
def test_every_card_is_known_as_the_maker_and_a_shop_call_it(card):
    assert catalog.gpu(f"NVIDIA GeForce {card.name} GPU") == card
    assert catalog.gpu(card.name.lower().replace(" ", "").replace("-", "")) == card


def test_an_offer_of_two_cards_or_none_is_not_one_card():
    with pytest.raises(HardwareError, match=r"Kaggle T4 x2 lends 2 cards\. Name one of them, T4"):
        catalog.gpu("Kaggle T4 x2")
    with pytest.raises(HardwareError, match="Binder lends no card"):
        catalog.gpu("Binder")


def test_only_ampere_and_later_compute_in_bf16():
    assert not catalog.gpu("T4").bf16 and not catalog.gpu("V100").bf16
    assert catalog.gpu("A100").bf16 and catalog.cpu(16).bf16


def test_kaggle_lends_two_t4():
    lent = catalog.offer("kaggle t4x2")
    assert (lent.gpu.name, lent.count) == ("T4", 2)
    with pytest.raises(HardwareError, match="Colab"):
        catalog.offer("Colab TPU")
