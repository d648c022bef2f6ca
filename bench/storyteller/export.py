"""The storyteller as a folder of files that transformers loads."""

import copy
import json

import torch

from selkey.steer.embedded import NAME


def save(model, tokenizer, folder):
    """Weights in fp16, which are computed with in fp32; config and tokenizer.

    Args:
        model: of `train.trained`; stays as it is.
        folder: Path; made if need be.

    Raises:
        OSError: it cannot be written.
    """
    copy.deepcopy(model).to(torch.float16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    path = folder / "config.json"
    # dtype is what the weights become when they are loaded
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "float32", "selkey": NAME}, indent=2) + "\n")
    for path in folder.iterdir():
        path.chmod(0o644)


def is_storyteller(folder):
    """Whether `save` wrote the model of a folder."""
    try:
        return json.loads((folder / "config.json").read_text()).get("selkey") == NAME
    except (OSError, ValueError):
        return False
