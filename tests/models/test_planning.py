"""plan="auto": what is kept follows the room, shape by shape, and hand-made choices go before it."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from sloth_nb import catalog, memory
from sloth_nb.engine.policy import KEEP
from sloth_nb.errors import HardwareError, ModelError
from sloth_nb.memory.plan import CHUNKS
from sloth_nb.memory.room import STANDING
from sloth_nb.models import FastLanguageModel, planning
from sloth_nb.models.checkpointing import set_checkpointing
from sloth_nb.models.host_embedding import HostEmbedding
from sloth_nb.models.planning import auto_plan_of
from sloth_nb.models.report import engine_of, report_of

MIB = 2**20
LARGEST = {"batch": 8, "length": 512}


@pytest.fixture
def ram(monkeypatch):
    """Sets how much of the machine's RAM is free."""

    def set_free(mib):
        monkeypatch.setattr(planning, "free_ram", lambda: int(mib * MIB / planning.CPU_SHARE))

    set_free(4096)
    return set_free


@pytest.fixture
def model(tiny_model):
    made = tiny_model("llama", vocab_size=512)
    set_checkpointing(made, "auto")
    return made


def moving(made, **but):
    """MiB that a plan takes beside what stands before its first step, without a graph's."""
    kinds = memory.estimate_work(made.work.but(graphs=False, **but), made.budget.gpu).kinds
    return sum(size for kind, size in kinds.items() if kind not in STANDING) / MIB


def policies(model, tokens, length):
    return set(map(str, engine_of(model).plan(tokens, length).policies))


def test_room_decides_whether_anything_is_computed_twice(model, ram):
    planner = auto_plan_of(model)
    assert set(planner.begin(**LARGEST).work.policy) == {"keep"}
    assert policies(model, 4096, 512) == {"keep"}
    ram(2 * (moving(planner.largest) - 2))  # fp32 takes twice what the memory model counts
    assert set(planner.begin(**LARGEST).work.policy) != {"keep"}
    assert policies(model, 4096, 512) != {"keep"}


def test_short_batches_keep_what_long_ones_can_not(model, ram):
    planner = auto_plan_of(model)
    need = {"batch": 2, "length": 8192}
    ram(2 * (moving(planner.begin(**need)) - 10))
    planner.begin(**need)
    engine = engine_of(model)
    assert KEEP not in engine.plan(16384, 8192).policies[:1]
    assert engine.plan(256, 128).policies == [KEEP] * 2


def test_ever_new_lengths_share_their_plans(model, ram):
    planner = auto_plan_of(model)
    planner.begin(batch=2, length=4096)
    for length in range(1024, 4097, 7):
        planner.plan(2 * length, length)
    assert len(planner._made) < 40


def test_what_does_not_fit_is_refused_with_what_would(model, ram):
    ram(200)
    with pytest.raises(
        HardwareError, match=r"does not fit .* of CPU: at its leanest it takes \d.\d GB\."
    ) as caught:
        auto_plan_of(model).begin(batch=64, length=2048)
    assert "  1. batch " in str(caught.value) and 'use_gradient_checkpointing="lean"' in str(caught.value)


def test_a_model_without_a_trainer_plans_when_it_is_first_called(model, ram):
    ids = torch.randint(5, 100, (2, 32))
    model(input_ids=ids, labels=ids).loss.backward()
    planner = auto_plan_of(model)
    assert planner.room > 0
    assert "planned for" in str(report_of(model))
    assert engine_of(model).plan(64, 32).policies == [KEEP] * 2


def test_gradients_are_the_same_whatever_was_planned(tiny_model, ram):
    ids = torch.randint(5, 100, (2, 48), generator=torch.Generator().manual_seed(0))
    grads = []
    for mib in (4096, 1):
        ram(mib)
        model = tiny_model("llama")
        set_checkpointing(model, "auto")
        model(input_ids=ids, labels=ids).loss.backward()
        grads.append([p.grad for p in model.parameters()])
        kept = engine_of(model).plan(96, 48).policies
        assert (kept == [KEEP] * 2) == (mib == 4096)
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_less_room_is_planned_for_after_a_plan_that_was_too_optimistic(model, ram):
    planner = auto_plan_of(model)
    planner.begin(**LARGEST)
    before = planner.room, engine_of(model).plan(4096, 512)
    planner.tighten()
    assert planner.room == pytest.approx(0.85 * before[0], rel=0.01)
    assert engine_of(model).plan(4096, 512) is not before[1]


def test_an_architecture_that_the_memory_model_does_not_know_is_left_to_the_engine_s_rule(
    model, ram, monkeypatch
):
    def unknown(config, name=None):
        raise ModelError("No reader for a sloth's config.")

    monkeypatch.setattr("sloth_nb.models.workload.from_config", unknown)
    planner = auto_plan_of(model)
    assert planner.begin(**LARGEST) is None
    assert planner.plan(64, 32) is None and planner.unknown
    assert "nothing was planned" in str(report_of(model))
    assert len(engine_of(model).plan(64, 32).policies) == 2


def test_transformers_own_modules_recompute_only_when_they_must(tiny_model, ram):
    model = tiny_model("gpt2", n_embd=64, n_layer=2, n_head=4)
    set_checkpointing(model, "auto")
    assert not report_of(model).installed and auto_plan_of(model) is not None
    planner = auto_plan_of(model)
    made = planner.begin(batch=2, length=64)
    assert made is None or made.work.policy == "keep"


def test_the_plan_of_loading_goes_before_a_notebook_s_unsloth_and_a_named_policy_before_the_plan(
    tiny_llama_path,
):
    model, _ = FastLanguageModel.from_pretrained(str(tiny_llama_path), load_in_4bit=False, plan="auto")
    adapted = FastLanguageModel.get_peft_model(model, r=4, use_gradient_checkpointing="unsloth")
    assert auto_plan_of(adapted) is not None
    FastLanguageModel.for_inference(adapted)
    assert auto_plan_of(adapted) is None
    FastLanguageModel.for_training(adapted)
    assert auto_plan_of(adapted) is not None
    FastLanguageModel.for_training(adapted, use_gradient_checkpointing="lean")
    assert auto_plan_of(adapted) is None


def test_another_plan_is_refused():
    with pytest.raises(ModelError, match="plan='fast' is not known; it is \"auto\" or None"):
        FastLanguageModel.from_pretrained("smollm2-135m-instruct", plan="fast")


def test_a_plan_that_wants_the_embeddings_on_the_host_gets_them_there_once(tiny_model, ram, monkeypatch):
    moved = []
    monkeypatch.setattr(planning, "why_embedding_stays", lambda model: None)
    monkeypatch.setattr(planning, "offload_embedding", lambda model: moved.append(model) or 7 * MIB)
    made = tiny_model("llama", vocab_size=512, tie_word_embeddings=False)
    set_checkpointing(made, "auto")
    planner = auto_plan_of(made)
    asked = []

    def plan_for_room(work, *, room, host, embeddings, **options):
        asked.append((embeddings, room, work.embedding_offload))
        answer = real(work, room=room, host=1 << 40, embeddings=False, **options)
        return replace(answer, work=answer.work.but(embedding_offload=True)) if embeddings else answer

    real = planning.plan_for_room
    monkeypatch.setattr(planning, "plan_for_room", plan_for_room)
    monkeypatch.setattr(planning.AutoPlan, "_may_move_embeddings", lambda self: not moved)
    planner.begin(**LARGEST)
    room = planner.room
    assert moved == [made] and planner.work.embedding_offload
    assert room == asked[0][1] + 7 * MIB  # what it freed is there for the next plans
    planner.plan(1000, 100)
    planner.tighten()
    assert moved == [made] and [embeddings for embeddings, *_ in asked] == [True, False, False]


def test_embeddings_stay_where_there_is_no_host_apart(model, ram):
    planner = auto_plan_of(model)
    planner.begin(**LARGEST)
    assert not planner._may_move_embeddings()


@pytest.fixture
def card(monkeypatch, ram):
    """A T4 with so many MiB free, of which torch holds 100 in its cache, as far as planning can tell."""

    def set_free(mib, share=1.0):
        device = SimpleNamespace(gpu=catalog.gpu("T4"))
        monkeypatch.setattr(planning, "devices", lambda: [device])
        monkeypatch.setattr(planning, "_devices_of", lambda model: {torch.device("cuda", 0)})
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(mib * MIB), 32 << 30))
        monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: share)
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 300 * MIB)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 200 * MIB)

    return set_free


def test_on_a_card_the_room_is_what_is_free_or_cached(tiny_model, card):
    made = tiny_model("llama", vocab_size=512).to(torch.bfloat16)
    made = FastLanguageModel.get_peft_model(made.requires_grad_(False), use_gradient_checkpointing="auto")
    planner = auto_plan_of(made)
    card(8000)
    largest = planner.begin(batch=64, length=2048)
    assert planner.room == 8100 * MIB - planning.LOADED_LATER and planner.gpu.name == "T4"
    assert set(largest.work.policy) == {"keep"} and planner.host > 0
    card(moving(largest) - 100 + planning.LOADED_LATER / MIB - 1)
    assert set(planner.begin(batch=64, length=2048).work.policy) != {"keep"}


def test_a_process_that_may_take_a_share_of_the_card_plans_for_the_rest_of_that(tiny_model, card):
    made = tiny_model("llama", vocab_size=512).to(torch.bfloat16)
    made = FastLanguageModel.get_peft_model(made.requires_grad_(False), use_gradient_checkpointing="auto")
    planner = auto_plan_of(made)
    card(8000, share=1 / 16)
    planner.begin(batch=64, length=2048)
    assert planner.room == (2048 - 300 + 100) * MIB - planning.LOADED_LATER


def test_on_a_card_that_is_short_of_room_embeddings_may_move(tiny_model, card, monkeypatch):
    monkeypatch.setattr(planning, "why_embedding_stays", lambda model: None)
    moved = []
    monkeypatch.setattr(planning, "offload_embedding", lambda model: moved.append(model) or (32 << 20))
    made = tiny_model("llama", vocab_size=262144, tie_word_embeddings=False).to(torch.bfloat16)
    made = FastLanguageModel.get_peft_model(made.requires_grad_(False), use_gradient_checkpointing="auto")
    planner = auto_plan_of(made)
    card(20000)
    largest = planner.begin(batch=8, length=2048)
    assert set(largest.work.policy) == {"keep"} and not moved
    card(moving(largest, loss_chunk=CHUNKS[-1]) - 100 + planning.LOADED_LATER / MIB - 20)
    room = planner.begin(batch=8, length=2048)
    assert room.work.embedding_offload and len(moved) == 1 and "embeddings in host memory" in str(planner)
    planner.plan(2048, 2048)
    assert len(moved) == 1


@pytest.mark.gpu
def test_on_a_real_card_that_is_short_of_room_embeddings_move_before_the_first_step(tiny_model, monkeypatch):
    made = tiny_model("llama", vocab_size=262144, tie_word_embeddings=False).to("cuda", torch.bfloat16)
    made = FastLanguageModel.get_peft_model(made.requires_grad_(False), use_gradient_checkpointing="auto")
    planner = auto_plan_of(made)
    largest = planner.begin(batch=8, length=2048)
    assert set(largest.work.policy) == {"keep"} and not largest.work.embedding_offload
    total = torch.cuda.mem_get_info()[1]
    room = int((moving(largest, loss_chunk=CHUNKS[-1]) - 20) * MIB) + planning.LOADED_LATER

    def mem_get_info(device=None):
        return room - torch.cuda.memory_reserved() + torch.cuda.memory_allocated(), total

    monkeypatch.setattr(torch.cuda, "mem_get_info", mem_get_info)
    assert planner.begin(batch=8, length=2048).work.embedding_offload
    assert isinstance(made.get_input_embeddings(), HostEmbedding)
    ids = torch.randint(4, 1000, (8, 2048), device="cuda")
    loss = made.train()(input_ids=ids, labels=ids).loss
    loss.backward()
    assert loss.isfinite()


@pytest.mark.gpu
def test_a_model_loaded_with_a_plan_trains_within_the_room_that_a_card_has(tiny_llama_path):
    model, _ = FastLanguageModel.from_pretrained(str(tiny_llama_path), load_in_4bit=False, plan="auto")
    model = FastLanguageModel.get_peft_model(model)
    ids = torch.randint(4, 1000, (4, 512), device="cuda")
    for _ in range(5):
        loss = model.train()(input_ids=ids, labels=ids).loss
        loss.backward()
    assert loss.isfinite() and str(engine_of(model).plan(2048, 512).policies[0]) == "keep"
    assert "planned for" in str(report_of(model))
