"""``FastLanguageModel`` and ``FastModel``: the names that published notebooks call."""

from typing import Any

from sloth_nb.models.adapters import add_adapter
from sloth_nb.models.loading import load
from sloth_nb.models.modes import for_inference, for_training
from sloth_nb.models.targets import PROJECTIONS

__all__ = ["FastLanguageModel", "FastModel"]


class FastModel:
    """Any model: text, and text with images or sound.

    Example:
        >>> model, tokenizer = FastModel.from_pretrained("smollm2-135m-instruct", load_in_4bit=False)
        >>> model = FastModel.get_peft_model(model, r=16)
    """

    from_pretrained = staticmethod(load)
    get_peft_model = staticmethod(add_adapter)
    for_inference = staticmethod(for_inference)
    for_training = staticmethod(for_training)


class FastLanguageModel(FastModel):
    """A text model. Adapters go to the seven projections of a decoder layer, unless others are named."""

    @staticmethod
    def get_peft_model(
        model: Any, r: int = 16, target_modules: Any = PROJECTIONS, *args: Any, **kwargs: Any
    ) -> Any:
        """``FastModel.get_peft_model`` with seven projections as the default of ``target_modules``.

        The ``finetune_…`` switches choose among them.
        """
        return add_adapter(model, r, target_modules, *args, **kwargs)
