"""The model that comes with selkey, so that `selkey steer` works without another; `selkey storyteller` trains it."""

from pathlib import Path

NAME = "storyteller"


def folder():
    """Path of its folder: config.json, model.safetensors and the tokenizer, as transformers loads them."""
    return Path(__file__).parent / NAME
