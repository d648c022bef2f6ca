"""The rotary positions of a model of transformers, as a `RoPE`; what is read from its modules is tried out before it is believed."""

import inspect
import sys

import torch

from selkey.cache.rope import RoPE, moved

# these change their angles with the length of the text
_CHANGING = ("dynamic", "longrope")


def rope_of(model, served):
    """The `RoPE` of a model's full-attention layers.

    Args:
        model: PreTrainedModel.
        served: the same as errors name it.

    Raises:
        ValueError: no rotary positions, or none that are known here.
    """
    decoder = model.get_decoder()
    rotary = next((module for module in decoder.modules() if _angles(module) is not None), None)
    attention = next((module for module in decoder.modules() if hasattr(module, "layer_idx") and hasattr(module, "scaling")), None)
    apply = getattr(sys.modules.get(type(attention).__module__), "apply_rotary_pos_emb", None)
    if rotary is None or apply is None:
        raise _unknown(served, "no rotary positions were found")
    kind = getattr(rotary, "rope_type", "default")
    kind = kind.get("full_attention", "default") if isinstance(kind, dict) else kind
    if kind in _CHANGING:
        raise _unknown(served, f"the angles of rope_type={kind!r} change with the length of the text")
    angles = _angles(rotary)
    width = served.geometry()[2]
    for columns in (width, 2 * len(angles)):
        try:
            near, far = (_rotated(rotary, apply, columns, position) for position in (3, 8))
        except RuntimeError:
            continue
        for interleaved in (False, True):
            if torch.allclose(moved(near, torch.tensor(5), angles.double().cpu(), interleaved), far, atol=1e-3):
                return RoPE(angles.tolist(), served.config.max_position_embeddings, interleaved)
    raise _unknown(served, "its rotation is of another form")


def _angles(module):
    for name in ("full_attention_inv_freq", "inv_freq"):
        if isinstance(getattr(module, name, None), torch.Tensor):
            return getattr(module, name).float()
    return None


def _rotated(rotary, apply, columns, position):
    """A key of ones at a position, ``[columns]``."""
    device = _angles(rotary).device
    key, positions = torch.ones(1, 1, 1, columns, device=device), torch.tensor([[position]], device=device)
    extra = {"layer_type": "full_attention"} if "layer_type" in inspect.signature(rotary.forward).parameters else {}
    return apply(key, key, *rotary(key, positions, **extra))[1].flatten().float().cpu()


def _unknown(served, reason):
    return ValueError(f"rope=True needs rotary positions that can be moved; {served}: {reason}. Use rope=False")
