"""`sloth-nb estimate MODEL`: what a run will take, what fits, what to change; from a config, in a blink."""

import argparse
import json

from sloth_nb.catalog import ModelInfo, from_hub
from sloth_nb.catalog.find import no_such_model
from sloth_nb.catalog.resolve import here
from sloth_nb.errors import ModelError
from sloth_nb.memory import (
    GB,
    METHODS,
    OPTIMISERS,
    POLICIES,
    TASKS,
    Budget,
    Estimate,
    Work,
    changes_to_fit,
    device_for,
    estimate_work,
    plan,
)

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="catalogue name, hub id, a folder or a config.json")
    parser.add_argument("--hub", action="store_true", help="fetch the config of a model that isn't listed")
    parser.add_argument(
        "--text-only", action="store_true", help="the language part of a model that also sees"
    )
    parser.add_argument("--gpu", help="a card's name, or cpu (default: this machine's)")
    parser.add_argument("--method", choices=METHODS, default="qlora")
    parser.add_argument("--task", choices=TASKS, default="sft")
    parser.add_argument("--batch", type=int, default=2, help="sequences at a time")
    parser.add_argument("--seq", "--length", dest="length", type=int, default=2048, help="tokens a sequence")
    parser.add_argument("--rank", type=int, default=16, help="of the LoRA")
    parser.add_argument("--policy", choices=POLICIES, default="recompute", help="what becomes of activations")
    parser.add_argument("--optimiser", choices=OPTIMISERS, default="adamw_8bit")
    parser.add_argument("--accumulation", type=int, default=1, help="batches a step")
    parser.add_argument("--gpus", type=int, default=1, help="how many such cards")
    parser.add_argument("--plan", action="store_true", help="choose the policies so that it is fast and fits")
    parser.add_argument(
        "--ram",
        type=float,
        help="GB of the host's memory; half may be used (default: this one's)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> int:
    """Prints the estimate. 0: it fits; 1: it doesn't, or can't be said; the text says what to do."""
    names = (
        "text_only",
        "method",
        "task",
        "batch",
        "length",
        "rank",
        "policy",
        "optimiser",
        "accumulation",
        "gpus",
    )
    work = Work.of(_model(options.model, options.hub), **{name: getattr(options, name) for name in names})
    card = device_for(options.gpu)
    budget, lines = Budget.of(card, ram_gb=options.ram), []
    if options.plan:
        made = plan(work, budget)
        answer, lines = made.estimate, [str(made)]
    else:
        answer = estimate_work(work, card)
    if options.json:
        print(json.dumps(as_data(answer, budget.host), indent=2))
    else:
        print("\n".join([*lines, str(answer), *_outlook(answer, budget.host)]))
    return 0 if answer.fits else 1


def _model(name: str, may_ask: bool) -> ModelInfo:
    """What is here by that name; else the hub's, when it may be asked."""
    found = here(name)
    if found is None and not may_ask:
        raise ModelError(no_such_model(name, "--hub, which asks the hub"))
    return found or from_hub(name)


def as_data(answer: Estimate, host: int) -> dict[str, object]:
    """The answer as plain data; its changes take at most ``host`` bytes of RAM."""
    work = answer.work
    return {
        "model": work.model.name,
        "gpu": answer.gpu.name,
        "method": work.method,
        "task": work.task,
        "batch": work.batch,
        "length": work.length,
        "fits": answer.fits,
        "total_bytes": answer.total,
        "tensor_bytes": answer.tensors,
        "reserved_bytes": answer.reserved,
        "host_bytes": answer.host,
        "moment": answer.moment,
        "kinds": answer.kinds,
        "longest_context": answer.longest_context(),
        "largest_batch": answer.largest_batch(),
        "changes": [str(change) for change in changes_to_fit(work, answer.gpu, host=host)],
        "notes": list(answer.notes),
    }


def _outlook(answer: Estimate, host: int) -> list[str]:
    changes = changes_to_fit(answer.work, answer.gpu, host=host)
    numbered = [f"  {number}. {change}" for number, change in enumerate(changes, 1)]
    if answer.fits and answer.host > host:
        short = f"But it takes {answer.host / GB:.1f} GB of RAM, of which {host / GB:.1f} GB may be used"
        return [f"{short}. It fits if you:", *numbered] if changes else [f"{short}."]
    if answer.fits:
        free = (answer.gpu.memory - answer.total) / GB
        return [
            f"{free:.1f} GB are left. Longest context {answer.longest_context():,} tokens, "
            f"largest batch {answer.largest_batch():,}."
        ]
    if not changes:
        return ["No change of settings makes it fit."]
    return ["It fits if you:", *numbered]
