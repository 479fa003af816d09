"""From a recipe to text: the one place that knows Jinja, and how numbers are said in a notebook."""

import tomllib
from functools import cache
from importlib import resources
from typing import Any

import jinja2

from sloth_nb.authoring.possible import caution
from sloth_nb.catalog import ModelInfo, known, models
from sloth_nb.errors import NotebookError

__all__ = ["gib", "minutes", "notebook", "pins", "script"]

_KINDS = {bool: "boolean", int: "integer", float: "number", str: "string"}


def notebook(recipe: Any) -> str:
    """The cells of a recipe's notebook, in the form that ``read_cells`` takes."""
    return _environment().from_string(recipe.task.text).render(_facts(recipe))


def script(recipe: Any) -> dict[str, str]:
    """The files of a recipe's script.

    Raises:
        NotebookError: a task that is more than one run.
    """
    facts = _facts(recipe)
    if not recipe.task.script:
        raise NotebookError(
            f"{recipe.task.name} is a notebook's work: someone looks between its steps. "
            "A script is written for: sft, completion, pretraining, tools."
        )
    names = {"train.py": "script.py.jinja", "accelerate.yaml": "accelerate.yaml.jinja"}
    return {name: _environment().get_template(source).render(facts) for name, source in names.items()}


@cache
def pins() -> dict[str, Any]:
    """The table of tested pins."""
    return tomllib.loads((resources.files(__package__) / "pins.toml").read_text("utf-8"))


@cache
def _environment() -> jinja2.Environment:
    """Jinja over ``parts``; a name that is not there is an error, never empty text."""

    def load(name: str) -> str:
        return (resources.files(__package__) / "parts" / name).read_text("utf-8")

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(load),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"gb": _gb, "gib": gib, "minutes": minutes, "literal": _literal}
    return environment


def _facts(recipe: Any) -> dict[str, Any]:
    """Everything that the texts may name."""
    model, settings, machine, where = recipe.model, recipe.settings, recipe.machine, recipe.platform
    cpu = machine.gpu.is_cpu
    gated = model.gated and not (settings.method == "qlora" and "4bit" in model.ids)
    smaller = _smaller_sibling(model)
    return {
        "recipe": recipe,
        "model": model,
        "name": model.hub_id.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1],
        "task": recipe.task,
        "platform": where,
        "machine": machine,
        "cpu": cpu,
        "s": settings,
        "alpha": "rank" if settings.alpha == settings.rank else f"{settings.alpha}",
        "processes": 1 if cpu else max(2, machine.count),
        "pins": pins(),
        "add": [
            *pins()["always"],
            *(() if cpu else pins()["gpu"]),
            *(pins()["offline"] if model.offline else ()),
        ],
        "param": _parameter if where.forms else _plain_parameter,
        "loader": "FastLanguageModel" if model.modality == "text" else "FastModel",
        "text_part": model.modality != "text",
        "in_catalogue": known(model.name) is not None,
        "secrets": where.secrets if not model.offline else None,
        "token_needed": _GATED.format(model.hub_id) if gated else _NOT_GATED,
        "choose_another": where.choose,
        "badge_line": where.link(f"notebooks/{where.name}/{recipe.name}.ipynb"),
        "gated": gated,
        "caution": caution(model, machine.gpu),
        # A model that thinks aloud needs room for that before it answers.
        "answer_tokens": 256 if model.kind == "reasoning" or model.template == "qwen3" else 96,
        "offline": recipe.options.get("offline", False),
        "output": f"{where.output}/{recipe.name}",
        "beginning": "" if model.template is None else '"Continue this text: " + ',
        "embedding_bytes": _embedding_bytes(model),
        "smaller": smaller.name if smaller else "",
        "training_seconds": settings.training_seconds,
    }


_GATED = (
    "This model's owner asks you to accept the licence, once, at huggingface.co/{}; after that a token of your account "
    "lets you load it."
)
_NOT_GATED = "Only for uploading the result, or for a gated model: leave it out otherwise."


def _embedding_bytes(model: ModelInfo) -> int:
    """Of embeddings and head trained whole: fp32 weights, gradients and both of AdamW's states."""
    return 16 * model.shape.vocab * model.shape.hidden * (1 if model.shape.tied else 2)


def _smaller_sibling(model: ModelInfo) -> ModelInfo | None:
    """The next smaller model of the family, of the same kind and modality."""
    siblings = [
        other
        for other in models()
        if (other.family, other.kind, other.modality) == (model.family, model.kind, model.modality)
        and other.parameters < 0.8 * model.parameters
    ]
    return max(siblings, key=lambda other: other.parameters, default=None)


def _plain_parameter(name: str, value: Any, says: str) -> str:
    """A parameter's line, what it means behind it."""
    return f"{name} = {_literal(value)}  # {says}"


def _parameter(name: str, value: Any, says: str) -> str:
    """The same as a field of Colab's form; elsewhere these are comments."""
    return f'#@markdown {says}:\n{name} = {_literal(value)}  #@param {{"type": "{_KINDS[type(value)]}"}}'


def _literal(value: Any) -> str:
    """A value as Python reads it, numbers as people write them."""
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, float):
        plain = f"{value:.3g}"
        return (
            plain.replace("e-0", "e-")
            if "e" in plain or value >= 0.001
            else f"{value:.0e}".replace("e-0", "e-")
        )
    return repr(value)


def _gb(size: float) -> str:
    """Bytes as people say them."""
    if size >= 10e9:
        return f"{size / 1e9:.0f} GB"
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(1, round(size / 1e6))} MB"


def gib(size: float) -> str:
    """Bytes of a device's memory in whole units of what drivers call GB, rounded up: it is an estimate."""
    return f"{-(-size // 2**30):.0f} GB"


def minutes(seconds: float) -> str:
    """A rough time: nobody should believe in its second digit."""
    minutes = seconds / 60
    if minutes < 1.5:
        return "a minute"
    if minutes < 10:
        return f"{minutes:.0f} minutes"
    if minutes < 90:
        return f"{5 * round(minutes / 5)} minutes"
    return f"{minutes / 60:.0f} hours"
