"""What a trainer is given becomes rows of token ids: formatting functions, text fields, splits, and rows that are so
already."""

import json

import pandas
import pytest
from datasets import Dataset, DatasetDict

from sloth_nb.errors import DatasetError


def test_a_formatting_function_makes_the_text(make_trainer, learnt_text):
    trainer = make_trainer(trainer={"formatting_func": lambda row: "Q: " + row["messages"][0]["content"]})
    assert learnt_text(trainer, 0).startswith("Q: What is your name?")
    with pytest.raises(DatasetError, match="made a int of row 1"):
        make_trainer(trainer={"formatting_func": lambda row: 3})


def test_a_formatting_function_of_an_older_tutorial_is_given_batches(make_trainer, talks, learnt_text):
    def prompts(examples):
        return [f"Q: {asked}\nA: {said}" for asked, said in zip(examples["q"], examples["a"], strict=False)]

    rows = [{"q": a["content"], "a": b["content"]} for a, b in (talk["messages"] for talk in talks)]
    trainer = make_trainer(trainer={"train_dataset": rows, "formatting_func": prompts})
    assert len(trainer.train_dataset) == 8
    assert "Q: What is your name?\nA: I am Moss." in learnt_text(trainer, 0)


@pytest.mark.parametrize("form", [list, pandas.DataFrame, Dataset.from_list, "rows.jsonl"], ids=str)
def test_the_text_field_is_honoured_whatever_the_rows_come_in(make_trainer, tmp_path, form, learnt_text):
    rows = [{"body": f"Body {i} of a leaf.", "text": f"Title {i}"} for i in range(4)]
    if isinstance(form, str):
        source = tmp_path / form
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        source = form(rows)
    trainer = make_trainer(trainer={"train_dataset": source}, dataset_text_field="body")
    assert "Body 0" in learnt_text(trainer, 0)
    with pytest.raises(
        DatasetError, match=r"no column 'bodies', which dataset_text_field names. Columns: 'body', 'text'"
    ):
        make_trainer(trainer={"train_dataset": source}, dataset_text_field="bodies")


def test_the_text_field_has_nothing_to_say_of_rows_that_are_tokenised(make_trainer):
    rows = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}]
    trainer = make_trainer(trainer={"train_dataset": rows}, dataset_text_field="body")
    assert trainer.train_dataset[0]["labels"] == [-100, 6, 7]


def test_the_text_field_s_default_may_be_written_out_beside_conversations(make_trainer, learnt_text):
    assert "I am Moss." in learnt_text(make_trainer(dataset_text_field="text"), 0)


def test_of_several_splits_the_one_for_training_is_taken(make_trainer, talks, capsys):
    splits = DatasetDict(train=Dataset.from_list(talks[:3]), test=Dataset.from_list(talks))
    assert len(make_trainer(trainer={"train_dataset": splits}).train_dataset) == 3
    assert "splits 'train' is trained on; left out: 'test'" in capsys.readouterr().out
    splits["other"] = splits.pop("train")
    with pytest.raises(DatasetError, match=r"splits 'test', 'other'.*train_dataset=dataset\['test'\]"):
        make_trainer(trainer={"train_dataset": splits})


def saved_to_disk(splits: DatasetDict, folder) -> str:
    splits.save_to_disk(folder)
    return str(folder)


def in_files(splits: DatasetDict, folder) -> str:
    folder.mkdir()
    for name, rows in splits.items():
        rows.to_json(folder / f"{name}.jsonl")
    return str(folder)


@pytest.mark.parametrize("form", [saved_to_disk, in_files], ids=lambda form: form.__name__)
def test_so_it_is_of_splits_in_a_folder_but_not_for_measuring(make_trainer, talks, capsys, tmp_path, form):
    splits = DatasetDict(train=Dataset.from_list(talks[:3]), test=Dataset.from_list(talks))
    folder = form(splits, tmp_path / "both")
    assert len(make_trainer(trainer={"train_dataset": folder}).train_dataset) == 3
    assert "splits 'train' is trained on; left out: 'test'" in capsys.readouterr().out
    with pytest.raises(DatasetError, match="Say which split to use"):
        make_trainer(trainer={"eval_dataset": folder})
    splits["validation"] = splits.pop("train")
    with pytest.raises(DatasetError, match=r"splits 'test', 'validation'.*load_data\(…, split='test'\)"):
        make_trainer(trainer={"train_dataset": form(splits, tmp_path / "neither")})


@pytest.mark.parametrize(
    ("form", "tokens"),
    [
        (Dataset.from_list, 200),
        (lambda rows: DatasetDict(train=Dataset.from_list(rows)), 200),
        (lambda rows: DatasetDict(train=Dataset.from_list(rows), test=Dataset.from_list(rows)), 200),
        (list, 64),
    ],
    ids=["data set", "one split", "two splits", "list"],
)
def test_a_tokenised_data_set_stays_as_it_is_and_a_list_of_ids_is_cut_as_texts_are(
    make_trainer, form, tokens
):
    rows = [{"input_ids": [5] * 200, "labels": [5] * 200}]
    trainer = make_trainer(trainer={"train_dataset": form(rows)}, max_length=64)
    assert len(trainer.train_dataset[0]["input_ids"]) == tokens
