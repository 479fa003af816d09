"""The formulas: an Estimate of a Work in a fraction of a millisecond, from the model's shape alone.

A step has moments (the forward and backward of the top and bottom layers, the loss, the optimiser's step,
generation); each is a sum of named tensors, and the fullest is the answer.
"""

from sloth_nb.catalog import GPU
from sloth_nb.memory.estimate import Estimate
from sloth_nb.memory.generation import generation
from sloth_nb.memory.layers import LayerCost, layer_cost
from sloth_nb.memory.libraries import context_bytes, fragmentation, library_bytes
from sloth_nb.memory.loss import loss_cost
from sloth_nb.memory.moment import Moment, added
from sloth_nb.memory.notes import notes_on
from sloth_nb.memory.plain import plain_moments
from sloth_nb.memory.weights import Standing, standing
from sloth_nb.memory.work import Work

__all__ = ["estimate_work"]


def estimate_work(work: Work, gpu: GPU) -> Estimate:
    """What this work will take on this card. Says nothing of whether it fits."""
    base = standing(work)
    steady = {
        "weights": base.weights,
        "adapters": base.adapters,
        "optimiser": base.optimiser,
        "libraries": library_bytes(gpu),
    }
    if work.engine == "hf":
        moments, host = plain_moments(work, gpu), 0
    else:
        moments, host = _engine_moments(work, gpu)
    moments.append(Moment("optimiser step", _optimiser_step(work, base)))
    moments += generation(work)
    if work.accumulation > 1:  # all gradients outlive every micro-step
        for moment in moments:
            moment.kinds["gradients"] = max(base.gradients, moment.kinds.get("gradients", 0))
    fullest = max(moments, key=lambda moment: sum(moment.kinds.values()))

    kinds = added(steady, fullest.kinds)
    kinds["fragmentation"] = fragmentation(kinds)
    kinds["context"] = context_bytes(gpu)
    return Estimate(
        work=work,
        gpu=gpu,
        kinds={kind: size for kind, size in kinds.items() if size},
        moment=fullest.name,
        host=base.host + host,
        trainable=base.trainable,
        notes=notes_on(work),
    )


def _engine_moments(work: Work, gpu: GPU) -> tuple[list[Moment], int]:
    """The moments of our engine's step, and the pinned host memory that its policies take."""
    layers, gradients = _layers(work, gpu), _gradients_by_layer(work)
    held = sum(cost.held for cost in layers)
    hidden = 2 * work.tokens * work.model.shape.hidden
    loss = loss_cost(work)
    moments = [Moment("loss", {"activations": held, "loss": loss.peak, "workspace": hidden})]
    below, done = held, loss.gradients
    for index in reversed(range(len(layers))):
        cost = layers[index]
        # Between equal layers memory moves in a straight line: only the ends of each run can be fullest.
        if index in (0, len(layers) - 1) or cost is not layers[index - 1] or cost is not layers[index + 1]:
            moments.append(
                Moment("forward", added(cost.forward, {"activations": below - cost.held + hidden}))
            )
            # The gradient of the output arrives and is copied once, to be written to on the way down.
            standing_by = {
                "activations": below,
                "workspace": 2 * hidden,
                "gradients": done,
                "loss": loss.kept,
            }
            moments.append(Moment("backward", added(cost.backward, standing_by)))
        below -= cost.held
        done += gradients[index]
    return moments, sum(cost.host for cost in layers)


def _layers(work: Work, gpu: GPU) -> list[LayerCost]:
    """The cost of every layer, bottom to top; equal layers share one object."""
    costs: list[LayerCost] = []
    made: dict[tuple[int, str], LayerCost] = {}
    policies = iter(work.policies)
    for number, block in enumerate(work.model.shape.blocks):
        for _ in range(block.count):
            key = (number, next(policies))
            if key not in made:
                made[key] = layer_cost(block, work, key[1], gpu.capability)
            costs.append(made[key])
    return costs


def _gradients_by_layer(work: Work) -> list[int]:
    """Bytes of gradients that each layer leaves behind."""
    shape = work.model.shape
    wrapped = shape.adapted(work.targets) if work.lora else []
    result: list[int] = []
    for block in shape.blocks:
        own = 2 * block.parameters
        if work.lora:
            own = sum(work.rank * (x.inputs + x.outputs) * 4 for owner, x in wrapped if owner is block)
        result += [own] * block.count
    return result


def _optimiser_step(work: Work, base: Standing) -> dict[str, int]:
    kinds = {"gradients": base.gradients}
    if work.optimiser == "adamw_torch":  # the square roots of every second moment, all at once
        kinds["workspace"] = base.gradients
    return kinds
