"""Answers: the right text, stopped in time, and a model that is afterwards as it was before."""

import threading
import time

import pytest
import torch

from sloth_nb import FastLanguageModel, generate, stream
from sloth_nb.errors import ModelError, TemplateError, TrainingError
from sloth_nb.inference.prompts import encode_prompt
from sloth_nb.models.occupancy import in_use
from sloth_nb.models.report import report_of

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
def adapted(tiny_llama, shared_tokenizer):
    """A tiny model whose adapter does something."""
    model = FastLanguageModel.get_peft_model(tiny_llama)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=1.0)
    return model


def flags(model):
    return (
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [getattr(layer, "gradient_checkpointing", None) for layer in model.modules()],
    )


def test_the_real_model_answers_from_its_template_and_ends_by_itself(smollm2, shared_tokenizer):
    pieces = list(stream(smollm2, shared_tokenizer, QUESTION, temperature=0, max_new_tokens=40))
    assert "".join(pieces) == "The capital of France is Paris."
    assert len(pieces) >= 5, "streamed, not handed over at the end"


def test_a_text_is_one_message_by_the_user(tiny_llama, shared_tokenizer):
    options = {"temperature": 0, "max_new_tokens": 8}
    asked = generate(tiny_llama, shared_tokenizer, QUESTION[0]["content"], **options)
    assert asked == generate(tiny_llama, shared_tokenizer, QUESTION, **options)


def test_without_a_template_a_text_is_continued_and_messages_are_refused(tiny_llama, tokenizer):
    tokenizer.chat_template = None
    ids = tokenizer("Once upon", return_tensors="pt")
    expected = tiny_llama.eval().generate(**ids, do_sample=False, max_new_tokens=6)[
        0, ids["input_ids"].shape[1] :
    ]
    answer = generate(tiny_llama, tokenizer, "Once upon", temperature=0, max_new_tokens=6)
    assert answer == tokenizer.decode(expected, skip_special_tokens=True)
    with pytest.raises(TemplateError, match="no chat template"):
        generate(tiny_llama, tokenizer, QUESTION)


def test_earlier_turns_and_a_system_prompt_reach_the_model(shared_tokenizer):
    messages = [
        {"role": "system", "content": "Answer in rhymes."},
        {"role": "user", "content": "I am Ann."},
        {"role": "assistant", "content": "Hello Ann."},
        *QUESTION,
    ]
    prompt = encode_prompt(shared_tokenizer, messages)
    assert prompt["attention_mask"].all()
    assert shared_tokenizer.decode(prompt["input_ids"][0]) == (
        "<|im_start|>system\nAnswer in rhymes.<|im_end|>\n"
        "<|im_start|>user\nI am Ann.<|im_end|>\n"
        "<|im_start|>assistant\nHello Ann.<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_an_answer_begun_by_the_assistant_is_continued(tiny_llama, shared_tokenizer):
    begun = [*QUESTION, {"role": "assistant", "content": "It is"}]
    ids = encode_prompt(shared_tokenizer, begun)["input_ids"][0]
    assert shared_tokenizer.decode(ids).endswith("<|im_start|>assistant\nIt is")


def test_the_same_seed_gives_the_same_answer_and_the_callers_random_numbers_are_left_alone(
    tiny_llama, shared_tokenizer
):
    before = torch.random.get_rng_state()
    options = {"temperature": 1.5, "top_p": 1.0, "max_new_tokens": 12}
    one, again = (generate(tiny_llama, shared_tokenizer, QUESTION, seed=7, **options) for _ in range(2))
    other = generate(tiny_llama, shared_tokenizer, QUESTION, seed=8, **options)
    assert one == again != other
    assert torch.equal(before, torch.random.get_rng_state())


def test_temperature_zero_draws_nothing(tiny_llama, shared_tokenizer):
    answers = {
        generate(tiny_llama, shared_tokenizer, QUESTION, temperature=0, max_new_tokens=8, seed=seed)
        for seed in range(3)
    }
    assert len(answers) == 1


def test_adapter_off_answers_as_the_base_and_on_as_the_tuned_model(adapted, shared_tokenizer, tiny_model):
    options = {"temperature": 0, "max_new_tokens": 10}
    base = tiny_model("llama", tie_word_embeddings=True)
    tuned = generate(adapted, shared_tokenizer, QUESTION, **options)
    off = generate(adapted, shared_tokenizer, QUESTION, adapter=False, **options)
    assert off == generate(base, shared_tokenizer, QUESTION, **options) != tuned
    assert generate(adapted, shared_tokenizer, QUESTION, **options) == tuned


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluating"])
@pytest.mark.parametrize("adapter", [True, False], ids=["tuned", "base"])
def test_the_model_is_left_in_its_own_mode(adapted, shared_tokenizer, training, adapter):
    adapted.train(training)
    adapted.base_model.model.model.layers[0].eval()
    before = flags(adapted)
    generate(adapted, shared_tokenizer, QUESTION, adapter=adapter, max_new_tokens=3)
    assert flags(adapted) == before


def test_a_frozen_adapter_stays_frozen(adapted, shared_tokenizer):
    adapted.requires_grad_(False)
    generate(adapted, shared_tokenizer, QUESTION, adapter=False, max_new_tokens=3)
    assert not any(parameter.requires_grad for parameter in adapted.parameters())


def test_nothing_is_recomputed_while_answering_with_gradient_checkpointing_on(adapted, shared_tokenizer):
    report_of(adapted).undo()  # the engine's layers pass no checkpointing function
    recomputed = []
    for layer in adapted.modules():
        if getattr(layer, "gradient_checkpointing", False):
            layer._gradient_checkpointing_func = lambda forward, *args: recomputed.append(1) or forward(*args)
    adapted.train()
    generate(adapted, shared_tokenizer, QUESTION, max_new_tokens=3)
    assert not recomputed
    adapted(**encode_prompt(shared_tokenizer, QUESTION))
    assert len(recomputed) == 2, "the same layers do recompute in training"


def test_stop_ends_the_answer_within_one_token(tiny_llama, shared_tokenizer):
    stop = threading.Event()
    tokens_after = []
    real = tiny_llama.forward

    def counted(*args, **kwargs):
        if stop.is_set():
            tokens_after.append(1)
        return real(*args, **kwargs)

    tiny_llama.forward = counted
    pieces = stream(tiny_llama, shared_tokenizer, QUESTION, stop=stop, temperature=0, max_new_tokens=1500)
    next(pieces)
    stop.set()
    list(pieces)
    assert len(tokens_after) <= 1


def test_closing_the_iterator_ends_the_thread(tiny_llama, shared_tokenizer):
    pieces = stream(tiny_llama, shared_tokenizer, QUESTION, temperature=0, max_new_tokens=1500)
    next(pieces)
    pieces.close()
    assert not [t for t in threading.enumerate() if t.name == "sloth_nb answer"]


def test_an_iterator_nobody_reads_any_more_does_not_block_the_next_answer(tiny_llama, shared_tokenizer):
    forgotten = stream(tiny_llama, shared_tokenizer, QUESTION, temperature=0, max_new_tokens=30)
    next(forgotten)
    assert generate(tiny_llama, shared_tokenizer, QUESTION, temperature=0, max_new_tokens=3)
    assert list(forgotten), "and it can still be read"


def test_an_error_in_the_thread_reaches_the_caller_and_the_model_is_restored(adapted, shared_tokenizer):
    adapted.train()
    before = flags(adapted)

    def broken(*_, **__):
        raise ZeroDivisionError("in the model")

    layer = adapted.base_model.model.model.layers[1]
    layer.forward = broken
    with pytest.raises(ZeroDivisionError, match="in the model"):
        generate(adapted, shared_tokenizer, QUESTION)
    assert flags(adapted) == before
    del layer.forward
    assert isinstance(generate(adapted, shared_tokenizer, QUESTION, max_new_tokens=3), str)


def test_two_answers_at_once_wait_for_each_other(adapted, shared_tokenizer):
    options = {"temperature": 0, "max_new_tokens": 20}
    alone = [generate(adapted, shared_tokenizer, QUESTION, adapter=on, **options) for on in (True, False)]
    together = [None, None]

    def ask(i):
        together[i] = generate(adapted, shared_tokenizer, QUESTION, adapter=i == 0, **options)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_a_model_that_another_thread_trains_refuses_to_answer(adapted, shared_tokenizer):
    training, done = threading.Event(), threading.Event()

    def train():
        with in_use(adapted, "training"):
            training.set()
            done.wait(30)

    trainer = threading.Thread(target=train)
    trainer.start()
    training.wait(30)
    try:
        with pytest.raises(TrainingError, match="is being trained and can't answer"):
            generate(adapted, shared_tokenizer, QUESTION)
        with pytest.raises(TrainingError, match="already being trained"), in_use(adapted, "training"):
            pass
    finally:
        done.set()
        trainer.join()
    assert isinstance(generate(adapted, shared_tokenizer, QUESTION, max_new_tokens=2), str)


def test_the_thread_that_trains_may_answer_in_between(adapted, shared_tokenizer):
    with in_use(adapted, "training"):
        assert isinstance(generate(adapted, shared_tokenizer, QUESTION, max_new_tokens=2), str)


def test_training_waits_for_no_answer_but_refuses(adapted, shared_tokenizer):
    pieces = stream(adapted, shared_tokenizer, QUESTION, temperature=0, max_new_tokens=1500)
    next(pieces)
    with pytest.raises(TrainingError, match="is answering right now"), in_use(adapted, "training"):
        pass
    pieces.close()
    with in_use(adapted, "training"):
        time.sleep(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"max_new_tokens": 2.5}, "max_new_tokens=2.5"),
        ({"temperature": -1}, "temperature=-1"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_p": 0}, "top_p=0"),
        ({"top_p": 1.01}, "top_p=1.01"),
    ],
)
def test_values_that_make_no_sense_are_refused_at_once(tiny_llama, shared_tokenizer, options, message):
    with pytest.raises(ModelError, match=message):
        stream(tiny_llama, shared_tokenizer, QUESTION, **options)


@pytest.mark.parametrize("messages", [[], [{"role": "user"}], ["hello"], None])
def test_messages_of_another_form_are_refused(tiny_llama, shared_tokenizer, messages):
    with pytest.raises(ModelError, match=r"no messages|not a dict"):
        stream(tiny_llama, shared_tokenizer, messages)


def test_a_template_that_refuses_a_role_is_a_template_error(tiny_llama, tokenizer):
    tokenizer.chat_template = "{{ raise_exception('only user and assistant') }}"
    with pytest.raises(TemplateError, match="only user and assistant"):
        stream(tiny_llama, tokenizer, QUESTION)


def test_a_prompt_longer_than_the_context_is_refused_and_an_answer_ends_at_it(tiny_model, shared_tokenizer):
    short = tiny_model("llama", max_position_embeddings=64)
    with pytest.raises(ModelError, match="context only 64"):
        stream(short, shared_tokenizer, "word " * 200)
    answer = generate(short, shared_tokenizer, QUESTION, temperature=0, max_new_tokens=500)
    assert len(shared_tokenizer(answer)["input_ids"]) <= 64


def test_a_model_tuned_in_full_has_no_base_to_answer_with(tiny_llama_path):
    model, tokenizer = FastLanguageModel.from_pretrained(str(tiny_llama_path), full_finetuning=True)
    with pytest.raises(ModelError, match="no adapter to switch off"):
        stream(model, tokenizer, QUESTION, adapter=False)


def test_tools_reach_the_model_through_the_template(tiny_llama, tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}"
        "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}"
    )
    tools = [{"type": "function", "function": {"name": "count_leaves", "description": "", "parameters": {}}}]
    prompt = encode_prompt(tokenizer, QUESTION, tools)
    assert tokenizer.decode(prompt["input_ids"][0]).endswith("[count_leaves]")
    assert isinstance(generate(tiny_llama, tokenizer, QUESTION, tools=tools, max_new_tokens=2), str)
