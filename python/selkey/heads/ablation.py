"""What the model loses without a head: its output is set to zero before the output projection, one head at a time."""

import torch
import torch.nn.functional as F

from selkey.hf import looking

# tokens that a head is tried on: one forward pass of them a head
TOKENS = 256
# numbers that the widest tensor of a pass may have
_AT_ONCE = 1 << 25


@torch.inference_mode()
def importance(model, ids, heads, watch=lambda *progress: None):
    """Change of the loss (causal language models) or of the final hidden state (others), head by head.

    Args:
        model: in evaluation mode.
        ids: ``[n]`` int64, tokens of one piece; the first `TOKENS` are used.
        heads: list of (layer, head), as `selkey.heads.reading` counts them.
        watch: told what is done, as by `selkey.bench.progress.bar`.

    Returns:
        (list of floats in the order of `heads`, what they are: "loss" in nats a token, more is more important, below 0 the model is
        better off without it; or "hidden", ‖without − with‖ / ‖with‖; the loss with all heads or None).
    """
    ids = ids[:TOKENS]
    has_loss = model.get_output_embeddings() is not None and looking.is_causal(model) and len(ids) > 1
    width = model.get_output_embeddings().weight.shape[0] if has_loss else model.config.get_text_config().hidden_size * 4
    together = max(1, min(8, _AT_ONCE // (len(ids) * width)))
    whole = _outcome(model, ids, [None], has_loss)[0]
    found = []
    for start in range(0, len(heads), together):
        watch("leaving heads out", start, len(heads), start / len(heads))
        for without in _outcome(model, ids, heads[start : start + together], has_loss):
            change = without - whole
            found.append(float(change) if has_loss else float(change.norm() / whole.norm()))
    return found, "loss" if has_loss else "hidden", float(whole) if has_loss else None


def _outcome(model, ids, left_out, has_loss):
    """Of each row of a batch, without the head named for it: the loss, or the final hidden state."""
    layers = looking.Layers()

    def see(call):
        layer = layers.number(call)
        rows = [(row, one[1]) for row, one in enumerate(left_out) if one is not None and one[0] == layer]
        if not rows:
            return None
        out = call.out.clone()
        for row, head in rows:
            out[row, :, head] = 0
        return out

    batch = ids[None].expand(len(left_out), -1)
    with looking.attending(model, see):
        if not has_loss:
            return model.base_model(input_ids=batch).last_hidden_state.float()
        logits = model(input_ids=batch, use_cache=False).logits[:, :-1].float()
    losses = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none")
    return losses.unflatten(0, (len(left_out), -1)).mean(1)
