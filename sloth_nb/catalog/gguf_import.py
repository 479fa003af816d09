"""A Llama-shaped GGUF file becomes a Hugging Face folder, without torch or transformers.

The weights are dequantised to bf16 one tensor at a time (GGUF stores the rows of q and k interleaved for its
rotary embedding; they are put back in Hugging Face's order), the tokenizer is rebuilt from the file's own
tokens and merges, with the pre-tokenizer that the file names.
"""

import json
from pathlib import Path
from typing import Any

from sloth_nb.errors import ModelError

__all__ = ["gguf_to_folder"]

_CONTROL_TOKEN = 3  # gguf's token_type of special tokens

_TENSOR_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER_TENSOR_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def gguf_to_folder(gguf_file: Path, folder: Path) -> None:
    """Writes config, generation config, tokenizer, chat template and bf16 weights into an existing folder.

    Args:
        gguf_file: a model of architecture ``llama`` with a ``smollm`` byte-level BPE tokenizer.
        folder: exists; files of the same names are replaced.
    Raises:
        ModelError: the ``gguf`` package is missing, or the file holds another kind of model or tokenizer.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ModelError(
            f"{gguf_file.name} can't be read without the package gguf. Install it: pip install "
            "'sloth-nb[demo]'."
        ) from error
    try:
        reader = GGUFReader(gguf_file)
    except (OSError, ValueError) as error:
        raise ModelError(f"{gguf_file} is not a GGUF file that can be read: {error}") from error
    meta = _Metadata(reader, gguf_file.name)
    meta.expect("general.architecture", "llama")
    meta.expect("tokenizer.ggml.model", "gpt2")
    meta.expect("tokenizer.ggml.pre", "smollm")

    names = {tensor.name for tensor in reader.tensors}
    config = _config(meta, tied="output.weight" not in names)
    _write_json(folder / "config.json", config)
    _write_json(
        folder / "generation_config.json",
        {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
    )
    _write_tokenizer(meta, folder)
    _write_weights(reader, config, folder / "model.safetensors")


class _Metadata:
    """The key-value part of a GGUF file; a missing or unexpected value is a ModelError that names it."""

    def __init__(self, reader: Any, file_name: str):
        self._reader, self._file_name = reader, file_name

    def __getitem__(self, key: str) -> Any:
        field = self._reader.get_field(key)
        if field is None:
            raise ModelError(f"{self._file_name} doesn't say its {key}, without which it can't be converted.")
        return field.contents()

    def expect(self, key: str, value: str) -> None:
        found = self[key]
        if found != value:
            raise ModelError(f"{self._file_name} has {key} = {found!r}; only {value!r} can be converted.")


def _config(meta: _Metadata, *, tied: bool) -> dict[str, Any]:
    heads, hidden = meta["llama.attention.head_count"], meta["llama.embedding_length"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": meta["llama.vocab_size"],
        "hidden_size": hidden,
        "intermediate_size": meta["llama.feed_forward_length"],
        "num_hidden_layers": meta["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "max_position_embeddings": meta["llama.context_length"],
        # GGUF keeps it as fp32, whose decimal digits are 9.999999747378752e-06.
        "rms_norm_eps": float(f"{meta['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_theta": meta["llama.rope.freq_base"],
        "tie_word_embeddings": tied,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "pad_token_id": meta["tokenizer.ggml.padding_token_id"],
        "dtype": "bfloat16",
    }


def _write_tokenizer(meta: _Metadata, folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    tokens, kinds = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    # "smollm" splits every digit from its neighbours. transformers' own GGUF reader forgets that.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))

    def named(role: str) -> str:
        return tokens[meta[f"tokenizer.ggml.{role}_token_id"]]

    _write_json(
        folder / "tokenizer_config.json",
        {
            # Any model's own tokenizer class would rebuild the pre-tokenizer, without Digits.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": named("bos"),
            "eos_token": named("eos"),
            "pad_token": named("padding"),
            "unk_token": named("unknown"),
            "extra_special_tokens": special,
            "model_max_length": meta["llama.context_length"],
            "clean_up_tokenization_spaces": False,
        },
    )
    (folder / "chat_template.jinja").write_text(meta["tokenizer.chat_template"], encoding="utf-8")


def _write_weights(reader: Any, config: dict[str, Any], file: Path) -> None:
    """One tensor at a time into a safetensors file: 8 bytes of header length, a JSON header, the numbers."""
    import gguf

    places = [(*_hugging_face_name(tensor.name), tensor) for tensor in reader.tensors]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, _, tensor in places:
        start, end = end, end + 2 * int(tensor.n_elements)
        shape = [int(size) for size in reversed(tensor.shape)]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)

    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    with file.open("wb") as out:
        out.write(len(head).to_bytes(8, "little") + head)
        for _, kind, tensor in places:
            values = gguf.dequantize(tensor.data, tensor.tensor_type)
            if kind in heads:
                values = _deinterleave(values, heads[kind])
            out.write(gguf.quantize(values, gguf.GGMLQuantizationType.BF16).tobytes())


def _deinterleave(weight: Any, heads: int) -> Any:
    """Rows of a head from GGUF's rotary order (x0 y0 x1 y1 …) to Hugging Face's (x0 x1 … y0 y1 …)."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def _hugging_face_name(name: str) -> tuple[str, str]:
    """``blk.3.attn_q.weight`` → (``model.layers.3.self_attn.q_proj.weight``, ``attn_q``)."""
    parts = name.split(".")
    if parts[0] == "blk" and len(parts) == 4 and parts[2] in _LAYER_TENSOR_NAMES:
        return f"model.layers.{parts[1]}.{_LAYER_TENSOR_NAMES[parts[2]]}.{parts[3]}", parts[2]
    if len(parts) == 2 and parts[0] in _TENSOR_NAMES:
        return f"{_TENSOR_NAMES[parts[0]]}.{parts[1]}", parts[0]
    raise ModelError(f"The GGUF tensor {name!r} has no place in a Llama model.")


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
