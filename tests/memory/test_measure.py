"""The measuring script on the CPU, with tiny models in place of the real ones: every row and every plan runs."""

import json
from dataclasses import replace

import measure
import measured_step
import pytest
import real_models
import torch
from real_models import work_of
from table import lines

from sloth_nb import catalog
from sloth_nb.memory import GB, Budget, Work, estimate_work, plan

TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 512,
    "query_pre_attn_scalar": 16,
    "layer_types": None,
}


class PretendedCard(measured_step.Card):
    """A CPU that counts nothing."""

    def __init__(self):
        self.name, self.total = "NVIDIA H100 80GB HBM3", 80 * 10**9
        self.gpu = catalog.gpu(self.name)
        self.caps = []

    def clear(self):
        """Nothing is cached."""

    def wait(self):
        """A CPU is done when it returns."""

    def context(self):
        return 0

    def cap(self, budget):
        self.caps.append(budget)

    def uncap(self):
        self.caps.append(None)

    def phase(self):
        return 1

    def now(self):
        return 1, 1


@pytest.fixture
def on_a_cpu(monkeypatch):
    whole = real_models.text_only

    def tiny(name):
        info = whole(name)
        known = {key: value for key, value in TINY.items() if key in info.config}
        tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        return replace(catalog.from_config({**info.config, **known, **tokens}, name=name), ids=info.ids)

    monkeypatch.setattr(measure, "text_only", tiny)
    monkeypatch.setattr(measure, "Card", PretendedCard)
    monkeypatch.setattr(real_models, "DEVICE", "cpu")
    # On a card it says what failed and goes on.
    monkeypatch.setattr(
        measure, "attempt", lambda what, call, *arguments, **options: call(*arguments, **options)
    )
    # Few tokens; batches, policies and all else as in the table.
    short = [
        (name, method, [(batch, min(length, 64), policy, more) for batch, length, policy, more in cases])
        for name, method, cases in measure.ROWS
    ]
    monkeypatch.setattr(measure, "ROWS", short)
    return tiny


def test_every_row_runs_and_is_written(on_a_cpu, tmp_path):
    file = tmp_path / "rows.json"
    measure.measure_rows(file, minutes=60)
    rows = json.loads(file.read_text("utf-8"))["rows"]
    asked = [work for _, _, group in measure.works() for work in group]
    assert len(rows) == len(asked) >= 40
    assert all(
        row["ok"] and row["loss"] > 0 and set(row["phases"]) >= {"forward", "backward"} for row in rows
    )
    names = Work.__dataclass_fields__.keys() - {"model"}
    for row, work in zip(rows, asked, strict=True):  # a row says all that makes its work again
        options = {name: row[name] for name in names if name in row}
        assert Work.of(work.model, **options) == work


def test_every_plan_runs_under_its_cap(on_a_cpu, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "PLANS", [("llama-3.1-8b", [(2, 64, 8), (1, 64, 80)])])
    file = tmp_path / "plans.json"
    measure.measure_plans(file, minutes=60)
    rows = json.loads(file.read_text("utf-8"))["rows"]
    assert [row["who"] for row in rows[:2]] == ["plan", "other"]
    assert {row["gb"] for row in rows} == {8, 80}
    assert all(row["budget"] <= 80 * 10**9 and row["ok"] for row in rows)


def test_a_row_that_fails_is_said_and_left_out(capsys):
    assert measure.attempt("llama on a toaster", lambda: 1 / 0) is None
    assert "llama on a toaster failed" in capsys.readouterr().out


def test_out_of_memory_is_an_answer(on_a_cpu, monkeypatch):
    work = Work.of(on_a_cpu("qwen3-0.6b"), method="lora", batch=1, length=16, graphs=False)
    model = real_models.build(work)

    def too_much(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr("sloth_nb.engine.causal.CausalEngine.causal_forward", too_much)
    found = measured_step.measured(model, work, PretendedCard())
    assert not found["ok"]
    assert found["error"].startswith("CUDA out of memory")


def test_most_plans_are_of_works_that_no_micro_step_makes_fit():
    larger = 0
    for name, cases in measure.PLANS:
        for _, length, gb in cases:
            one = Work.of(measure.text_only(name), batch=1, length=length, rank=32, policy="keep")
            larger += estimate_work(one, catalog.gpu("H100")).total > gb * GB
    caps = [gb for _, cases in measure.PLANS for _, _, gb in cases]
    assert set(caps) == {8, 16, 24, 40, 80}
    assert larger >= 9 <= len(caps)


def test_the_alternatives_are_other_plans_that_should_fit():
    budget = Budget.of("H100", gb=16, ram_gb=48)
    chosen = plan(Work.of("llama-3.1-8b", batch=1, length=8192, rank=32), budget).work
    tried = measure.tried_for(chosen, budget)
    assert tried[0] == chosen
    assert 1 < len(tried) <= 1 + measure.NEAREST
    assert all(work.policies(budget.gpu) != chosen.policies(budget.gpu) for work in tried[1:])


def test_the_table_sets_predicted_beside_measured():
    work = Work.of("qwen3-4b", rank=32, graphs=False)
    said = estimate_work(work, catalog.gpu("H200"))
    found = {"ok": True, "allocated": int(said.tensors / 1.02), "reserved": said.reserved}
    rows = [{**measure.asked(work), **found}, {"ok": False}]
    _, _, line = lines({"card": "NVIDIA H200", "rows": rows})
    assert line.startswith("| qwen3-4b, qlora, rank 32") and "| +2.0 % |" in line and "| +0.0 % |" in line


def test_a_row_is_read_as_the_work_that_it_ran():
    """Whatever a layer's policy is, and though the engine's own rule may be another by then."""
    from sloth_nb.memory.policy import Policy

    policies = ("keep",) * 4 + (Policy(("input", "middle"), ("attention",)),) * 12 + ("offload",) * 16
    work = Work.of("llama-3.1-8b", policy=policies, packed=True, rank=32)
    row = json.loads(json.dumps({**measure.asked(work), "seconds": 1.0}))
    assert work_of(row) == work


CASES = [(name, *case) for name, cases in measure.PLANS for case in cases]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "batch", "length", "gb"), CASES)
def test_the_plans_to_be_measured_run_under_their_caps_on_paper(name, batch, length, gb):
    """Before a card is asked: the engine's own step on fake tensors, through the allocator's rules with the cap."""
    from sloth_nb.memory.dry_run import runs_within

    work = Work.of(real_models.text_only(name), batch=batch, length=length, rank=32, graphs=False)
    budget = Budget.of("H200", gb=gb, ram_gb=measure.RAM_GB)
    made = plan(work, budget, embeddings=False)
    assert runs_within(made.work, budget.gpu, budget.device)
