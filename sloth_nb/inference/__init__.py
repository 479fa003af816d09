"""Answers from a loaded model, streamed or whole, with its adapter on or off."""

from sloth_nb.inference.streaming import generate, stream

__all__ = ["generate", "stream"]
