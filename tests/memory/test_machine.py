"""This machine's cards, as drivers of machines that we don't have tell of them."""

import os

import pytest

from sloth_nb.memory.machine import cards_of_the_driver


@pytest.fixture
def driver(monkeypatch, tmp_path):
    """driver(row): an nvidia-smi on the path that answers this row."""

    def answer(row):
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\necho '{row}'\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        (device,) = cards_of_the_driver()
        return device.gpu

    return answer


def test_a_card_of_the_table_has_its_name_there_and_the_memory_that_is_there(driver):
    card = driver("Tesla T4, 15095, 15000, 7.5")
    assert (card.name, card.memory, card.bandwidth) == ("T4", 15095 << 20, 320)


@pytest.mark.parametrize(
    ("row", "like"),
    [
        ("NVIDIA GeForce RTX 3060 Ti, 8192, 8000, 8.6", 360),
        ("NVIDIA GeForce RTX 4060 Ti, 8188, 8000, 8.9", 288),
        ("NVIDIA H100 NVL, 95830, 95000, 9.0", 3350),
        ("Quadro P4000, 8192, 8000, 6.1", 500),
    ],
)
def test_a_card_that_the_table_lacks_keeps_its_name_memory_and_capability(row, like, driver):
    card = driver(row)
    name, total, _, capability = row.split(", ")
    assert (card.name, card.memory, card.capability) == (name, int(total) << 20, float(capability))
    assert card.bandwidth == like
