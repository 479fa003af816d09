"""train_on_responses_only and its kin: published notebooks' calls, with the mask found in the template."""

import copy
from types import SimpleNamespace
from typing import Any

import datasets
import pytest

from sloth_nb.data import (
    get_chat_template,
    prepare,
    standardize_data_formats,
    standardize_sharegpt,
    train_on_responses_only,
)
from sloth_nb.errors import DatasetError, SlothWarning, TemplateError

CHAT = [
    {"role": "user", "content": "what is 1+1?"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "and 2+2?"},
    {"role": "assistant", "content": "four"},
]


def trainer_for(tokenizer: Any, texts: list[str], **more: Any) -> SimpleNamespace:
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    data = datasets.Dataset.from_dict({"input_ids": rows})
    return SimpleNamespace(train_dataset=data, eval_dataset=None, processing_class=tokenizer, **more)


def trained(tokenizer: Any, row: dict[str, list[int]]) -> str:
    return tokenizer.decode([i for i in row["labels"] if i != -100])


@pytest.mark.parametrize("name", ["own", "chatml", "llama-3", "qwen-3", "gemma-3", "phi-3", "alpaca"])
def test_the_mask_is_found_in_the_template_with_no_part_given(tokenizer: Any, name: str):
    if name != "own":
        tokenizer = get_chat_template(tokenizer, name)
    text = tokenizer.apply_chat_template(CHAT, tokenize=False)
    trainer = train_on_responses_only(trainer_for(tokenizer, [text]))
    said = trained(tokenizer, trainer.train_dataset[0])
    for end in ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<think>\n\n</think>\n\n", "\n"):
        said = said.replace(end, "")
    assert said == "twofour"


def test_parts_given_by_hand_are_honoured(shared_tokenizer: Any):
    texts = ["Q: what? A: two\nQ: and? A: four"]
    trainer = train_on_responses_only(trainer_for(shared_tokenizer, texts), "Q:", "A:")
    assert trained(shared_tokenizer, trainer.train_dataset[0]) == " two four"


def test_only_the_last_response_when_asked(shared_tokenizer: Any):
    text = shared_tokenizer.apply_chat_template(CHAT, tokenize=False)
    trainer = train_on_responses_only(trainer_for(shared_tokenizer, [text]), last_response_only=True)
    assert trained(shared_tokenizer, trainer.train_dataset[0]) == "four<|im_end|>"


def test_packed_rows_are_masked_sequence_by_sequence(shared_tokenizer: Any):
    ids = shared_tokenizer.apply_chat_template(CHAT, tokenize=True, return_dict=False)
    data = datasets.Dataset.from_dict({"input_ids": [ids + ids], "seq_lengths": [[len(ids), len(ids)]]})
    trainer = SimpleNamespace(train_dataset=data, processing_class=shared_tokenizer)
    row = train_on_responses_only(trainer).train_dataset[0]
    assert trained(shared_tokenizer, row) == "two<|im_end|>four<|im_end|>" * 2


def test_a_doubled_bos_loses_its_twin(shared_tokenizer: Any):
    bos = shared_tokenizer.bos_token_id
    ids = shared_tokenizer.apply_chat_template(CHAT, tokenize=True, return_dict=False)
    data = datasets.Dataset.from_dict({"input_ids": [[bos, bos, *ids[1:]]]})
    trainer = SimpleNamespace(train_dataset=data, processing_class=shared_tokenizer)
    row = train_on_responses_only(trainer).train_dataset[0]
    assert row["input_ids"][:2] == [bos, ids[1]] and len(row["labels"]) == len(row["input_ids"])


def test_rows_without_a_response_are_left_out_aloud_and_all_of_them_refused(shared_tokenizer: Any):
    text = shared_tokenizer.apply_chat_template(CHAT, tokenize=False)
    with pytest.warns(SlothWarning, match="1 of 2 rows of train_dataset"):
        trainer = train_on_responses_only(trainer_for(shared_tokenizer, [text, "no chat"]))
    assert len(trainer.train_dataset) == 1
    with pytest.raises(DatasetError, match="Not one of the 1 rows of train_dataset"):
        train_on_responses_only(trainer_for(shared_tokenizer, ["no chat"]))


def test_the_evaluation_rows_are_masked_too_and_labels_survive_the_collator(shared_tokenizer: Any):
    from transformers import DataCollatorForLanguageModeling

    text = shared_tokenizer.apply_chat_template(CHAT, tokenize=False)
    collator = DataCollatorForLanguageModeling(shared_tokenizer, mlm=False)
    trainer = trainer_for(shared_tokenizer, [text], data_collator=collator)
    trainer.eval_dataset = {"a": trainer.train_dataset}
    train_on_responses_only(trainer)
    assert trained(shared_tokenizer, trainer.eval_dataset["a"][0]).startswith("two")
    batch = trainer.data_collator([trainer.train_dataset[0]])
    assert batch["labels"][0, 0] == -100


def test_return_function_touches_no_trainer(shared_tokenizer: Any):
    text = shared_tokenizer.apply_chat_template(CHAT, tokenize=False)
    trainer = trainer_for(shared_tokenizer, [text])
    relabel = train_on_responses_only(trainer, return_function=True)
    assert "labels" not in trainer.train_dataset.column_names
    assert trained(shared_tokenizer, {k: v[0] for k, v in relabel(trainer.train_dataset[:]).items()})


def test_sharegpt_becomes_role_and_content():
    data = datasets.Dataset.from_list(
        [{"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}], "id": 1}]
    )
    expected = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    assert standardize_sharegpt(data)[0] == {"id": 1, "conversations": expected}
    assert standardize_data_formats is standardize_sharegpt


def test_an_unknown_template_name_suggests_near_ones(tokenizer: Any):
    with pytest.raises(TemplateError, match=r"no chat template named 'lama-3.1'.*llama-3.1"):
        get_chat_template(tokenizer, "lama-3.1")


def test_a_mapping_lets_a_template_read_the_data_s_own_keys(tokenizer: Any):
    mapping = {"role": "from", "content": "value", "user": "human", "assistant": "gpt"}
    tokenizer = get_chat_template(tokenizer, "chatml", mapping=mapping)
    text = tokenizer.apply_chat_template(
        [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}], tokenize=False
    )
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyo<|im_end|>\n"


@pytest.mark.parametrize(
    "mapping",
    [
        {"role": "from", "content": "value", "user": "human", "assistant": "gpt"},
        {"content": "value"},
        {"user": "human", "assistant": "gpt"},
    ],
)
def test_a_template_with_a_mapping_writes_the_usual_messages_as_one_without(tokenizer: Any, mapping: dict):
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    talk = [
        {"role": "system", "content": "Be slow."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "yo"},
    ]
    plain = get_chat_template(copy.deepcopy(tokenizer), "qwen-3")
    mapped = get_chat_template(tokenizer, "qwen-3", mapping=mapping)
    for prompt in (False, True):
        both = [
            t.apply_chat_template(talk, tokenize=False, add_generation_prompt=prompt) for t in (plain, mapped)
        ]
        assert both[0] == both[1]


def test_rows_with_their_own_keys_are_prepared_with_a_template_that_has_a_mapping(tokenizer: Any):
    mapping = {"role": "from", "content": "value", "user": "human", "assistant": "gpt"}
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer = get_chat_template(tokenizer, "chatml", mapping=mapping)
    assert tokenizer.eos_token == "<|im_end|>"
    rows = [{"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]}]
    row = prepare(rows, tokenizer).dataset[0]
    assert trained(tokenizer, row) == "yo<|im_end|>"
