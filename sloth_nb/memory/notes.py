"""What a reader of an estimate should know and might not ask."""

from sloth_nb.memory.engines import engine_runs
from sloth_nb.memory.work import Work

__all__ = ["notes_on"]


def notes_on(work: Work) -> tuple[str, ...]:
    """Sentences about this work; empty when there is nothing to say."""
    notes, info = [], work.model
    if work.engine == "hf" and not engine_runs(info):
        notes.append(_without_the_engine(work))
    if info.shape.learnt_positions and work.length > info.context:
        notes.append(
            f"{info.name} has learnt {info.context:,} positions and can't go beyond them: cut the text to them."
        )
    elif info.context and work.length > info.context:
        factor = -(-work.length // info.context)
        notes.append(
            f"{work.length:,} tokens are more than the {info.context:,} that {info.name} was made for. RoPE "
            f"scaling by {factor} ({{'rope_type': 'linear', 'factor': {factor}.0}}) squeezes the positions "
            f"into its range: it can be trained at this length, and is a little worse at short ones until "
            f"it has been."
        )
    if info.modality == "text+image":
        notes.append(
            "Pictures count as tokens of the sequence. The vision tower is taken as frozen: get_peft_model adapts it, "
            "too, unless it is told finetune_vision_layers=False."
        )
    if work.method in ("qlora", "lora-8bit") and any(block.experts for block in info.shape.blocks):
        notes.append(
            "The experts stay 16-bit: they are fused weights, which a quantised load leaves as they are."
        )
    if work.task == "dpo" and not work.lora:
        notes.append(
            "The frozen reference of DPO is a second copy of the weights, unless its answers are stored."
        )
    return tuple(notes)


def _without_the_engine(work: Work) -> str:
    says = (
        f"This package's engine does not run {work.model.name}: transformers and peft train it as they come"
    )
    if work.policy not in ("keep", "recompute"):
        asked = f"policy={work.policy!r}" if isinstance(work.policy, str) else "a policy a layer"
        says += f", and {asked} counts as 'recompute'"
    if engine_runs(work.model.text_part):
        says += "; its language part alone (text_only=True, here and in from_pretrained) the engine does run"
    return says + "."
