"""Answers streamed from a thread, so that a notebook shows and stops them; the model is left as it was."""

import copy
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from sloth_nb.errors import HardwareError, ModelError
from sloth_nb.inference.decoding import TextOfTokens
from sloth_nb.inference.prompts import Messages, encode_prompt
from sloth_nb.interrupts import told
from sloth_nb.models.context import context_of
from sloth_nb.models.devices import input_device
from sloth_nb.models.occupancy import in_use
from sloth_nb.models.seeding import seeded
from sloth_nb.models.settings import settings_of
from sloth_nb.models.tokenizers import text_tokenizer

__all__ = ["generate", "stream"]

_POLL_SECONDS = 0.2  # a blocking wait without end can't be interrupted on Windows


@told("Interrupted while the model answered. The model is as it was.")
def generate(model: Any, tokenizer: Any, messages_or_text: Messages | str, **options: Any) -> str:
    """The whole answer at once; the same arguments and errors as ``stream``."""
    return "".join(stream(model, tokenizer, messages_or_text, **options))


def stream(
    model: Any,
    tokenizer: Any,
    messages_or_text: Messages | str,
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.7,
    top_p: float = 0.9,
    adapter: bool = True,
    stop: threading.Event | None = None,
    seed: int | None = None,
    tools: list[Any] | None = None,
) -> Iterator[str]:
    """Pieces of the answer, as the model writes it.

    The model may be in training or evaluation mode: it is put back into its own at the end, also when the
    answer is stopped, the iterator is closed, or something fails.

    Args:
        model: from ``from_pretrained`` or ``get_peft_model``, or any causal language model of transformers.
        tokenizer: its tokenizer, or a processor.
        messages_or_text: a list of ``{"role", "content"}``; or a text, which is one message by the user (and
            where the tokenizer has no chat template, is continued as it stands).
        max_new_tokens: where the answer is cut off, if the model hasn't ended it.
        temperature: 0 always takes the likeliest token; higher is more random.
        top_p: sample only from the likeliest tokens that make up this probability together.
        adapter: False answers with the LoRA adapter switched off, as the base model would.
        stop: set it, from any thread, to end the answer within one token.
        tools: functions that the model may ask for, as chat templates take them (JSON schemas, or Python functions
            with type hints and a docstring). Its answer then holds the call, in the template's own form.
        seed: makes a sampled answer repeatable; the caller's own random numbers are left alone.
    Raises:
        ModelError: a value that makes no sense, a prompt longer than the context, or no base to answer with.
        TemplateError: no chat template for messages, or one that refuses them.
        TrainingError: the model is being trained by another thread.
    """
    _check(model, max_new_tokens, temperature, top_p, adapter)
    inputs = encode_prompt(tokenizer, messages_or_text, tools)
    config = _generation_config(model, tokenizer, inputs, max_new_tokens, temperature, top_p)
    return _stream(model, text_tokenizer(tokenizer), inputs, config, adapter, stop, seed)


def _stream(
    model: Any,
    tokenizer: Any,
    inputs: dict[str, Any],
    config: Any,
    adapter: bool,
    stop: threading.Event | None,
    seed: int | None,
) -> Iterator[str]:
    pieces: queue.Queue[str | BaseException | None] = queue.Queue()
    abandoned = threading.Event()
    device = input_device(model)

    caller = threading.get_ident()

    def run() -> None:
        """All of it in this thread, so that an iterator nobody reads any more holds nothing back."""
        try:
            with (
                in_use(model, "answering", on_behalf_of=caller),
                _answering(model, adapter),
                torch.no_grad(),
                seeded(seed) if seed is not None else nullcontext(),
            ):
                model.generate(
                    **{name: tensor.to(device) for name, tensor in inputs.items()},
                    generation_config=config,
                    streamer=_Streamer(tokenizer, pieces),
                    stopping_criteria=StoppingCriteriaList([_Stopped(abandoned, stop)]),
                )
            pieces.put(None)
        except BaseException as error:
            pieces.put(error)

    worker = threading.Thread(target=run, name="sloth_nb answer", daemon=True)
    worker.start()
    try:
        while True:
            try:
                piece = pieces.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            if piece is None:
                return
            if isinstance(piece, BaseException):
                raise _said(piece)
            if piece:
                yield piece
    finally:
        abandoned.set()
        worker.join()


class _Streamer(BaseStreamer):
    """Hands generated tokens over as text; the first call holds the prompt."""

    def __init__(self, tokenizer: Any, pieces: "queue.Queue[Any]"):
        self._text = TextOfTokens(tokenizer)
        self._pieces = pieces
        self._prompt = True

    def put(self, value: Any) -> None:
        if self._prompt:
            self._prompt = False
            return
        for token in value.flatten().tolist():
            self._pieces.put(self._text.add(token))

    def end(self) -> None:
        self._pieces.put(self._text.end())


class _Stopped(StoppingCriteria):
    """Ends generation when any of the events is set."""

    def __init__(self, *events: threading.Event | None):
        self._events = [event for event in events if event is not None]

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        stopped = any(event.is_set() for event in self._events)
        return torch.full((input_ids.shape[0],), stopped, dtype=torch.bool, device=input_ids.device)


@contextmanager
def _answering(model: Any, adapter: bool) -> Iterator[None]:
    """Evaluation mode and the adapter as asked for; every module and parameter gets its own flags back.

    In evaluation mode a layer with gradient checkpointing keeps its cache and recomputes nothing.
    """
    modes = {module: module.training for module in model.modules()}
    gradients = {parameter: parameter.requires_grad for parameter in model.parameters()}
    off = model.disable_adapter() if not adapter and hasattr(model, "disable_adapter") else nullcontext()
    try:
        model.eval()
        with off:
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        for parameter, wants in gradients.items():  # switching an adapter back on makes it trainable
            parameter.requires_grad_(wants)


def _check(model: Any, max_new_tokens: int, temperature: float, top_p: float, adapter: bool) -> None:
    if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise ModelError(f"max_new_tokens={max_new_tokens!r} is not a number of tokens.")
    if not temperature >= 0:
        raise ModelError(f"temperature={temperature!r} is negative. 0 is the least random.")
    if not 0 < top_p <= 1:
        raise ModelError(f"top_p={top_p!r} is not between 0 and 1.")
    if not adapter and settings_of(model).full_finetuning:
        raise ModelError(
            "This model was fine-tuned in full: it has no adapter to switch off. Load the base model "
            "beside it to compare."
        )


def _generation_config(
    model: Any,
    tokenizer: Any,
    inputs: dict[str, Any],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
) -> Any:
    length = inputs["input_ids"].shape[-1]
    context = context_of(model.config)
    if context is not None and length >= context:
        raise ModelError(
            f"The prompt has {length:,} tokens, and the model's context only {context:,}. Shorten the "
            "conversation, or load the model with a longer max_seq_length."
        )
    inner = text_tokenizer(tokenizer)
    config = copy.deepcopy(model.generation_config)
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    sampled = temperature > 0
    config.update(
        max_new_tokens=min(max_new_tokens, context - length) if context else max_new_tokens,
        max_length=None,
        do_sample=sampled,
        temperature=temperature if sampled else 1.0,
        top_p=top_p if sampled else 1.0,
        top_k=0 if sampled else 50,  # off; transformers' default would cut the choice a second time
        eos_token_id=sorted({end for end in [*ends, inner.eos_token_id] if end is not None}) or None,
        pad_token_id=inner.pad_token_id if inner.pad_token_id is not None else inner.eos_token_id,
        use_cache=True,
    )
    return config


def _said(error: BaseException) -> BaseException:
    """An error of the generating thread, in our words where we have some."""
    if isinstance(error, torch.OutOfMemoryError):
        said = HardwareError(
            "The GPU's memory is full. Shorten the conversation or the answer, then ask again."
        )
        said.__cause__ = error
        return said
    return error
