"""The room that is left on a card decides what a step keeps."""

import psutil
import pytest

from sloth_nb import catalog
from sloth_nb.errors import HardwareError
from sloth_nb.memory import Budget, Work
from sloth_nb.memory.machine import CONTAINERS, device_for, free_ram, ram_gib
from sloth_nb.memory.room import STANDING, plan_for_room

GIB = 2**30
H200 = catalog.gpu("H200")
LLAMA = Work.of("llama-3.1-8b", batch=2, length=4096, rank=32)


def planned(room_gib, host_gib=64, work=LLAMA, **options):
    return plan_for_room(work, room=int(room_gib * GIB), host=int(host_gib * GIB), gpu=H200, **options)


def test_plenty_of_room_keeps_everything_and_little_moves_it_out():
    assert all(policy.host == () and len(policy.device) == 5 for policy in planned(60).policies)
    assert all(policy.host and not policy.device for policy in planned(2.3).policies[:-1])
    assert sum(policy.device == ("input",) for policy in planned(6, host_gib=0).policies) > 20


@pytest.mark.parametrize("room_gib", [3, 5, 8, 13, 20])
def test_the_step_fits_the_room_and_spends_it(room_gib):
    made = planned(room_gib)
    moving = sum(size for kind, size in made.estimate.kinds.items() if kind not in STANDING)
    assert moving <= room_gib * GIB
    # Of the card that is this room and what stands on it. A layer is the smallest step: of the room alone, 80 %.
    assert made.estimate.total > 0.85 * made.budget.device and moving > 0.8 * room_gib * GIB


def test_the_batch_stays_unless_it_may_be_split():
    work = LLAMA.but(batch=8)
    assert planned(6, work=work).work.batch == 8
    split = planned(6, work=work, split=True).work
    assert split.batch < 8 and split.batch * split.accumulation == 8


def test_too_little_room_is_refused_with_what_would_fit():
    with pytest.raises(HardwareError, match=r"does not fit[\s\S]*1\. [\s\S]*3\. "):
        planned(1)


def test_states_that_are_there_need_no_room():
    kept = [
        sum(len(p.device) for p in planned(6, work=LLAMA.but(rank=256), optimiser_is_there=there).policies)
        for there in (False, True)
    ]
    assert kept[1] > kept[0]


def test_transformers_own_modules_keep_everything_or_recompute():
    plain = LLAMA.but(engine="hf")
    assert planned(120, work=plain).work.policy == "keep"
    assert planned(35, work=plain).work.policy == "recompute"


def test_a_container_s_limit_counts_as_the_machine_s_ram(tmp_path, monkeypatch):
    files = [tmp_path / name for name in ("max", "current", "stat")]
    for file, text in zip(
        files, ("1000000", "900000", "anon 1\ninactive_file 30000\nactive_file 20000\n"), strict=True
    ):
        file.write_text(text)
    monkeypatch.setattr("sloth_nb.memory.machine.CONTAINERS", (tuple(map(str, files)), *CONTAINERS))
    assert free_ram() == 150_000
    files[0].write_text("max\n")
    assert free_ram() > 150_000


@pytest.mark.parametrize(("limit", "gib"), [(str(3 << 30), 3), ("max", None), ("9223372036854771712", None)])
def test_the_ram_of_a_container_is_its_limit(limit, gib, tmp_path, monkeypatch):
    """Whatever asks: a plan's budget, a CPU's size, the doctor."""
    whole = psutil.virtual_memory().total / 2**30
    file = tmp_path / "memory.max"
    file.write_text(f"{limit}\n")
    monkeypatch.setattr("sloth_nb.memory.machine.CONTAINERS", ((str(file), "", ""),))
    assert ram_gib() == (gib or whole)
    assert Budget.of("T4").host == int((gib or whole) * 2**30 / 2)
    assert device_for("cpu").memory_gib == round(gib or whole, 1)
