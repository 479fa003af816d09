"""Collator: rows of token ids become one batch, padded to a rectangle or laid end to end without padding."""

from typing import Any

from sloth_nb.errors import DatasetError

__all__ = ["Collator", "overwrites_labels"]

IGNORED = -100


def overwrites_labels(collator: Any) -> bool:
    """Whether a collator makes labels of all token ids, whatever the rows' own are.

    transformers' collator of language modelling does, and so do its subclasses that leave the making to it; one
    that makes the batch itself is its author's matter.
    """
    from transformers import DataCollatorForLanguageModeling as Overwriting

    return isinstance(collator, Overwriting) and all(
        getattr(type(collator), made) is getattr(Overwriting, made) for made in ("__call__", "torch_call")
    )


class Collator:
    """Makes a batch of prepared rows (``input_ids``, ``labels``, and ``seq_lengths`` when packed).

    Args:
        pad_token_id: the tokenizer's; fills the padded places of ``input_ids``.
        padding_free: lay the rows end to end in one (1, T) sequence; no padding, positions restart at every
            row.
        pad_to_multiple_of: round the width up (padded form only).

    Returns, padded: ``input_ids``, ``attention_mask``, ``labels``, each (B, S) int64.
    Returns, padding-free: ``input_ids``, ``labels``, ``position_ids``, each (1, T) int64; ``cu_seq_lens_q``
    and ``cu_seq_lens_k`` (n + 1,) int32; ``max_length_q`` and ``max_length_k``, ints. These are transformers'
    own names. The first label of every sequence is -100: no token is predicted from its neighbour's last.
    """

    def __init__(
        self, pad_token_id: int | None, padding_free: bool = False, pad_to_multiple_of: int | None = None
    ):
        if padding_free and pad_to_multiple_of:
            raise ValueError(
                "pad_to_multiple_of has no meaning without padding: leave it out, or padding_free=False"
            )
        if pad_token_id is None and not padding_free:
            raise DatasetError(
                "The tokenizer has no pad token, and a padded batch needs one: give its EOS's id (padded places "
                "are never learnt, whatever fills them), or padding_free=True."
            )
        self.pad_token_id = pad_token_id
        self.padding_free = padding_free
        self.pad_to_multiple_of = pad_to_multiple_of

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return self._flat(rows) if self.padding_free else self._padded(rows)

    def _padded(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        import torch

        if any(len(row.get("seq_lengths") or ()) > 1 for row in rows):
            raise ValueError(
                "packed rows need padding_free=True: in a padded batch the neighbours would see each other"
            )
        width = max(len(row["input_ids"]) for row in rows)
        if self.pad_to_multiple_of:
            width = -(-width // self.pad_to_multiple_of) * self.pad_to_multiple_of
        ids = torch.full((len(rows), width), self.pad_token_id, dtype=torch.int64)
        labels = torch.full((len(rows), width), IGNORED, dtype=torch.int64)
        mask = torch.zeros((len(rows), width), dtype=torch.int64)
        for i, row in enumerate(rows):
            n = len(row["input_ids"])
            ids[i, :n] = torch.as_tensor(row["input_ids"])
            labels[i, :n] = torch.as_tensor(row["labels"])
            mask[i, :n] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def _flat(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        import torch

        lengths = [n for row in rows for n in (row.get("seq_lengths") or [len(row["input_ids"])])]
        ids = torch.cat([torch.as_tensor(row["input_ids"], dtype=torch.int64) for row in rows])
        labels = torch.cat([torch.as_tensor(row["labels"], dtype=torch.int64) for row in rows])
        if sum(lengths) != len(ids):
            raise ValueError(f"seq_lengths add up to {sum(lengths)}, but the rows hold {len(ids)} tokens")
        ends = torch.tensor([0, *lengths]).cumsum(0)
        labels[ends[:-1]] = IGNORED
        positions = torch.cat([torch.arange(n) for n in lengths])
        bounds = ends.to(torch.int32)
        longest = max(lengths)
        return {
            "input_ids": ids[None],
            "labels": labels[None],
            "position_ids": positions[None],
            "cu_seq_lens_q": bounds,
            "cu_seq_lens_k": bounds,
            "max_length_q": longest,
            "max_length_k": longest,
        }
