"""The room that is left on a card decides what a step keeps."""

import pytest

from sloth_nb import catalog
from sloth_nb.memory import Work, estimate_work
from sloth_nb.memory.policy import NAMED
from sloth_nb.memory.room import policies_for_room

GIB = 2**30
H200 = catalog.gpu("H200")
INFO = catalog.find("llama-3.1-8b")


def policies(room_gib, host_gib=64, **options):
    given = {"batch": 2, "length": 4096, "rank": 32, **options}
    return policies_for_room(
        INFO.config, room=int(room_gib * GIB), host=int(host_gib * GIB), gpu=H200, **given
    )


def test_plenty_of_room_keeps_everything_and_little_moves_it_out():
    assert all(policy.host == () and len(policy.device) == 5 for policy in policies(60))
    assert all(policy.host and not policy.device for policy in policies(0.1))
    assert all(policy.device == ("input",) for policy in policies(0.1, host_gib=0))


@pytest.mark.parametrize("room_gib", [3, 5, 8, 13, 20])
def test_the_step_fits_the_room(room_gib):
    chosen = policies(room_gib)
    names = {policy: name for name, policy in NAMED.items()}
    work = Work.of(INFO, batch=2, length=4096, rank=32, policy=tuple(names[policy] for policy in chosen))
    kinds = estimate_work(work, H200).kinds
    moving = sum(
        size for kind, size in kinds.items() if kind not in ("weights", "adapters", "libraries", "context")
    )
    assert 0.7 * room_gib * GIB < moving <= room_gib * GIB


def test_states_that_are_there_need_no_room():
    kept = [
        sum(len(p.device) for p in policies(6, rank=256, optimiser_is_there=there)) for there in (False, True)
    ]
    assert kept[1] > kept[0]
