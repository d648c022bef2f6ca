"""What the indexers of transformers' models compute before they score: queries, keys and weights, from the indexer's own sub-modules.

=====================================  =======================================================================================
indexer of                             what is its own
=====================================  =======================================================================================
deepseek_v32, axk2                     the first columns are rotated, in two halves
glm_moe_dsa, dots3_note                the first columns are rotated, in pairs
mistral_large4                         in pairs; queries out of the hidden states; some layers without rotation
hy_v4                                  the last columns are rotated, in two halves; the norm of keys is in fp32
minimax_m3_vl                          one list per head, no weights, no ReLU; blocks of keys
glm5_next                              no rotation; keys are pools of tokens
=====================================  =======================================================================================

The rotation is the function of the model's own file.
"""

import sys
from typing import NamedTuple

import torch

_AFTER_QUERIES = ("position_embeddings", "attention_mask", "position_ids", "past_key_values")
_ARGUMENTS = ("hidden_states", "q_resid", *_AFTER_QUERIES)


class Family(NamedTuple):
    """Indexers that compute alike; `arguments` are those of their forward call, in order."""

    kind: str
    arguments: tuple = _ARGUMENTS
    rotation: str = "apply_rotary_pos_emb"
    rotates_last: bool = False


# by the name of the class
FAMILIES = {
    "DeepseekV32Indexer": Family("tokens"),
    "AXK2Indexer": Family("tokens"),
    "GlmMoeDsaIndexer": Family("tokens", rotation="apply_rotary_pos_emb_interleave"),
    "Dots3NoteTextIndexer": Family("tokens", rotation="apply_rotary_pos_emb_interleave"),
    "MistralLarge4TextIndexer": Family("tokens", ("hidden_states", *_AFTER_QUERIES), "apply_rotary_pos_emb_interleave"),
    "HYV4Indexer": Family("tokens", rotates_last=True),
    "MiniMaxM3VLIndexer": Family("blocks", ("hidden_states", "position_embeddings", "past_key_values", "position_ids")),
    "Glm5NextTextIndexer": Family("pools", ("hidden_states", "q_resid", "attention_mask", "past_key_values")),
    "DeepseekV4Indexer": Family("entries"),
}


def family_of(module):
    """The `Family` of an indexer, None of any other module; a subclass counts as its base."""
    return next((FAMILIES[one.__name__] for one in type(module).__mro__ if one.__name__ in FAMILIES), None)


def named(family, arguments, keywords):
    """The arguments of an indexer's forward call, by name."""
    return dict(zip(family.arguments, arguments, strict=False)) | keywords


class Inputs(NamedTuple):
    """What `selkey.index_scores` takes: q ``[B, S, HI, DI]``, k ``[B, S, DI]`` of the new tokens, weights ``[B, S, HI]`` or None."""

    q: torch.Tensor
    k: torch.Tensor
    weights: torch.Tensor | None
    scale: float


def of_tokens(indexer, call):
    """`Inputs` of an indexer that scores tokens, for a `named` call."""
    hidden_states = call["hidden_states"]
    B, S, _ = hidden_states.shape
    source = call["q_resid"] if "q_resid" in call else indexer.q_input_norm(hidden_states)
    q = indexer.wq_b(source).view(B, S, indexer.n_heads, indexer.head_dim)
    if "q_resid" not in call:
        q = indexer.softmax_scaling(q, call["position_ids"], head_dim_first=False)
    norm = indexer.k_norm
    k = norm(indexer.wk(hidden_states).to(norm.weight.dtype)).to(hidden_states.dtype).unsqueeze(2)
    if getattr(indexer, "use_rope", True):
        q, k = _rotated(indexer, q, k, call["position_embeddings"])
    return Inputs(q, k.squeeze(2), _weights(indexer, hidden_states), indexer.softmax_scale)


def of_blocks(indexer, call):
    """`Inputs` of an indexer that scores blocks of keys by their best key; every head of q has a list of its own."""
    hidden_states = call["hidden_states"]
    B, S, _ = hidden_states.shape
    q = indexer.q_norm(indexer.q_proj(hidden_states).view(B, S, -1, indexer.head_dim))
    k = indexer.k_norm(indexer.k_proj(hidden_states).view(B, S, 1, indexer.head_dim))
    cos, sin = (part[..., : indexer.head_dim] for part in call["position_embeddings"])
    q, k = _function(indexer, "apply_rotary_pos_emb")(q, k, cos, sin, unsqueeze_dim=2)
    return Inputs(q, k.squeeze(2), None, 1.0)


def of_pools(indexer, call):
    """`Inputs` of an indexer that scores pools of tokens; k ``[B, S, 2·DI + 1]``: keys, gates, whether a token is real."""
    hidden_states = call["hidden_states"]
    B, S, _ = hidden_states.shape
    q = indexer.wq_b(call["q_resid"]).view(B, S, -1, indexer.head_dim)
    k = indexer.k_norm(indexer.wk(hidden_states))
    gates = torch.nn.functional.linear(hidden_states, indexer.index_kpool_compress_gate)
    is_real = call["attention_mask"].to(k.dtype)[..., None]
    return Inputs(q, torch.cat((k, gates, is_real), -1), _weights(indexer, hidden_states), indexer.softmax_scale)


def alike(q, k):
    """q and k in one dtype: a rotation in fp32 can leave them different."""
    return (q, k) if q.dtype == k.dtype else (q.float(), k.float())


def _weights(indexer, hidden_states):
    project = indexer.weights_proj
    return project(hidden_states.to(project.weight.dtype)).float() * indexer.n_heads**-0.5


def _rotated(indexer, q, k, position_embeddings):
    family, columns = family_of(indexer), indexer.qk_rope_head_dim
    rotate = _function(indexer, family.rotation)
    cos, sin = position_embeddings
    if family.rotates_last:
        left = indexer.head_dim - columns
        q_turned, k_turned = rotate(q[..., left:], k[..., left:], cos, sin, unsqueeze_dim=2)
        return torch.cat((q[..., :left], q_turned), -1), torch.cat((k[..., :left], k_turned), -1)
    q_turned, k_turned = rotate(q[..., :columns], k[..., :columns], cos, sin, unsqueeze_dim=2)
    return torch.cat((q_turned, q[..., columns:]), -1), torch.cat((k_turned, k[..., columns:]), -1)


def _function(indexer, name):
    """A function of the file that the indexer's class comes from."""
    home = next(one for one in type(indexer).__mro__ if one.__name__ in FAMILIES)
    return getattr(sys.modules[home.__module__], name)
