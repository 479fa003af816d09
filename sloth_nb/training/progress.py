"""A run's progress in one line of text, for terminals and logs."""

from sloth_nb.training.history import History

__all__ = ["duration", "progress_line"]


def duration(seconds: float) -> str:
    """``0:07``, ``12:34`` or ``3:04:05``."""
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def progress_line(history: History) -> str:
    """Step, losses, speed, peak memory and time left, as far as they are known."""
    parts = [f"step {history.step}/{history.max_steps or '?'}"]
    for name, shown in (("loss", "loss {:.3f}"), ("eval_loss", "held-out {:.3f}")):
        if (value := history.latest(name)) is not None:
            parts.append(shown.format(value))
    if (speed := history.latest("tokens_per_second")) is not None:
        parts.append(f"{speed:,.0f} tokens/s")
    if (memory := history.latest("memory_bytes")) is not None:
        parts.append(f"{memory / 1e9:.2f} GB")
    if (left := history.seconds_left()) is not None:
        parts.append(f"{duration(left)} left")
    return "   ".join(parts)
