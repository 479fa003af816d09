"""Trainers (TRL's, subclassed), runs that don't block the notebook, and their stream of events."""
