"""Which model can do which task in this version, and why not, in one sentence."""

from sloth_nb.authoring.tasks import COMING, Task, task, tasks
from sloth_nb.catalog import GPU, ModelInfo, models, resolve
from sloth_nb.errors import NotebookError

__all__ = ["TEXT_PART", "caution", "check", "choose", "possible_tasks", "writes_text"]

# Models that also see, whose text part can be trained alone (from_pretrained(text_only=True)), by model_type.
TEXT_PART = ("gemma3",)
# Models whose activations may exceed what fp16 holds; a card without bf16 computes in it.
WIDE = ("gemma3", "gemma3_text")


def writes_text(model: ModelInfo) -> bool:
    """Whether this version can train it on text."""
    return model.modality == "text" or model.config.get("model_type") in TEXT_PART


def caution(model: ModelInfo, card: GPU) -> str:
    """What a user should know of this model on this card; empty when nothing."""
    if model.config.get("model_type") not in WIDE or card.bf16:
        return ""
    return (
        f"{model.title} was trained in bf16; in the fp16 of a {card.name} some numbers may grow too large, and the "
        "loss is then not a number. Step 6 says so. The way out is a newer card (L4, A100) or Qwen3 of the same size."
    )


def choose(model: "str | ModelInfo", name: "str | Task") -> tuple[ModelInfo, Task]:
    """The model and the task of these names, when they go together.

    Raises:
        ModelError: no such model; with the nearest.
        NotebookError: no such task, a task that is still to come, or a pair that makes no sense.
    """
    info = resolve(model)
    coming = None if isinstance(name, Task) else COMING.get(str(name).strip().lower())
    if coming is not None and coming[1] != info.modality and not (coming[1] == "text" and writes_text(info)):
        raise NotebookError(
            f"{name} is for {_KINDS[coming[1]]}; {info.name} is one of {_KINDS[info.modality]}, "
            f"so the two make no notebook. {_ready(info)}"
        )
    found = task(name)
    check(info, found)
    return info, found


def check(model: ModelInfo, task: Task) -> None:
    """Nothing, when this model can do this task.

    Raises:
        NotebookError: it can't; says why, and what could.
    """
    if not writes_text(model):
        raise NotebookError(
            f"{model.name} is one of {_KINDS[model.modality]}, which this version can't train yet. "
            f"It trains models that write text, such as {_similar(model)}."
        )
    if task.kinds and model.kind not in task.kinds and model.kind != "unknown":
        raise NotebookError(
            f"{model.name} is a {model.kind} model; {task.name} needs one that follows instructions, "
            f"such as {_similar(model, task)}."
        )
    if task.templates and model.template not in task.templates and model.kind != "unknown":
        has = "chat template has no" if model.template else "base model has no chat template, and so no"
        raise NotebookError(
            f"{model.name}'s {has} place for what {task.name} trains ({task.title.lower()}). "
            f"Those of {', '.join(_able(model, task)[:3])} have."
        )


def possible_tasks(model: ModelInfo) -> list[Task]:
    """The tasks that this model can do, the easiest first."""
    able = []
    for one in tasks():
        try:
            check(model, one)
        except NotebookError:
            continue
        able.append(one)
    return able


_KINDS = {
    "text": "the models that write text",
    "text+image": "the models that see pictures",
    "text→speech": "the models that speak",
    "speech→text": "the models that write down speech",
}


def _ready(model: ModelInfo) -> str:
    able = ", ".join(one.name for one in possible_tasks(model))
    if able:
        return f"What can be done with {model.name}: {able}."
    return f"What it is for ({', '.join(model.tasks)}) is not in this version yet."


def _similar(model: ModelInfo, task: Task | None = None) -> str:
    return _able(model, task)[0]


def _able(model: ModelInfo, task: Task | None = None) -> list[str]:
    """Models that write text and can do the task, the nearest in size first."""
    able = [
        info
        for info in models()
        if info.modality == "text"
        and info.kind == "instruct"
        and (task is None or not task.templates or info.template in task.templates)
    ]
    return [info.name for info in sorted(able, key=lambda info: abs(info.parameters - model.parameters))]
