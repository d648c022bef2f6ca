"""Bytes and operations of a whole decoder, for one token of every sequence: pure functions of a model.

A selection says how many keys a query reads and who chooses them; what choosing reads is a part of its own, never hidden in the
attention. Layers with a window read their window, whatever is selected in the others. Where an indexer chooses for a model that has none,
one is added (`with_indexer`): its weights, operations and keys are counted like those of one that came with the model.
"""

import functools

from selkey.bench.architecture import attention_weights, indexer_weights, mlp_weights, parameters
from selkey.bench.cost import INDEX_BYTES, ByteCounts, sectors_bytes
from selkey.bench.nearest import unknown
from selkey.bench.selections import DENSE, Selection, mean_up_to, own_selection, with_indexer
from selkey.bench.selector_cost import INDEX_SCALE_BYTES, SELECTORS, Shape
from selkey.kernels.layouts import LAYOUTS

__all__ = [
    "CONTEXT_OF_A_PROGRAM", "DENSE", "SELECTORS", "Selection", "added_indexer", "attention_bytes", "decode_bytes", "expected_experts",
    "flops_per_token",
    "index_key_bytes", "keys_read", "kv_bytes", "kv_bytes_per_token", "layer_row_bytes", "list_bytes", "memory", "own_selection",
    "row_bytes", "selector_bytes", "selector_shape", "with_indexer",
]  # fmt: skip

# what a GPU delivers at least
SECTOR = 32
CONTEXT_OF_A_PROGRAM = 1.0e9


def kv_bytes_per_token(model, format="bf16"):
    """Bytes that the cache takes for one token of one sequence, before windows forget it; index keys included."""
    return model.n_layers * (layer_row_bytes(model, format) + index_key_bytes(model))


def kv_bytes(model, context, batch=1, format="bf16"):
    """Bytes of the whole cache: layers with a window keep the window; index keys included."""
    rows = model.full_layers * context + model.window_layers * min(context, model.window or 0)
    return batch * (rows * layer_row_bytes(model, format) + model.n_layers * context * index_key_bytes(model))


def layer_row_bytes(model, format="bf16"):
    """Bytes of one token in one layer: its key and value rows in every KV head, or its latent row."""
    return model.n_kv_heads * sum(row_bytes(model, format))


def row_bytes(model, format="bf16"):
    """Bytes of (a key row, a value row) of one KV head, or of (the latent row, nothing).

    Raises:
        ValueError: an unknown format, or one that does not hold such rows.
    """
    return _row_bytes(*model.cached_widths, format)


@functools.lru_cache
def _row_bytes(key, value, format):
    is_latent = value == 0
    name = {"bf16": "mla_bf16", "fp8": "mla_fp8"}.get(format, format) if is_latent else format
    if name not in LAYOUTS:
        raise unknown("format", format, LAYOUTS)
    kind = LAYOUTS[name]
    if kind.is_joint != is_latent:
        wanted = ", ".join(other.name for other in LAYOUTS.values() if other.is_joint == is_latent)
        raise ValueError(f"format {format!r} does not hold the rows of this model: use one of {wanted}")
    return kind.bytes_per_row(key), 0 if is_latent else kind.bytes_per_row(value)


def index_key_bytes(model):
    """Bytes of the index key of one token in one layer of a model that has an indexer, 132 at 128 columns; else 0."""
    return model.index_dim + INDEX_SCALE_BYTES if model.index_dim else 0


def keys_read(model, context, selection=None, causal=False):
    """Keys that one query reads, summed over the layers.

    Args:
        context: keys that the query sees; causal: the mean over queries that see 1, 2, … context.
        selection: `Selection`; None: `own_selection` of the model.
    """
    selection = selection or own_selection(model)
    full = selection.mean_keys(context) if causal else selection.keys(context)
    window = 0 if not model.window_layers else mean_up_to(model.window, context) if causal else min(model.window, context)
    return model.full_layers * full + model.window_layers * window


def attention_bytes(model, context, batch=1, format="bf16", selection=None):
    """The three counts of `selkey.bench.cost` for the attention of one step, all layers: rows, q, out and lists.

    Of one query a sequence no row is read twice, so that unique is touched; keys in a row are streamed, selected rows take whole
    sectors.
    """
    selection = selection or own_selection(model)
    window = model.window_layers * min(context, model.window or 0)
    rows = model.full_layers * selection.keys(context)
    record = sum(row_bytes(model, format))
    key, value = (model.cached_widths[0], model.latent_dim) if model.is_latent else (model.head_dim, model.v_head_dim)
    streamed = window * model.n_kv_heads * record
    fixed = model.n_layers * model.n_heads * (key + value) * 2
    if selection.is_dense:
        algorithmic = batch * (streamed + rows * model.n_kv_heads * record + fixed)
        return ByteCounts(algorithmic, algorithmic, algorithmic)
    selector = SELECTORS[selection.selector]
    # a list for all heads reads what a token has in one piece
    joined = 1 if selector.has_list_per_head else model.n_kv_heads
    delivered = sectors_bytes(joined * record, SECTOR) / joined
    lists = list_bytes(model, context, 1, selection)
    algorithmic = batch * (streamed + rows * model.n_kv_heads * record + lists + fixed)
    touched = batch * (streamed + rows * model.n_kv_heads * delivered + lists + fixed)
    return ByteCounts(algorithmic, touched, touched)


def list_bytes(model, context, batch=1, selection=None):
    """Bytes of the index lists of one step, all layers; a page is named by one index."""
    selection = selection or own_selection(model)
    if selection.is_dense:
        return 0
    selector = SELECTORS[selection.selector]
    lists = model.n_kv_heads if selector.has_list_per_head else 1
    return batch * model.full_layers * lists * -(-selection.keys(context) // selector.page) * INDEX_BYTES


def selector_bytes(model, context, batch=1, format="bf16", selection=None):
    """Bytes that choosing reads and writes in one step, all layers."""
    selection = selection or own_selection(model)
    if selection.is_dense:
        return 0
    shape = selector_shape(model, format)
    return batch * model.full_layers * SELECTORS[selection.selector].step_bytes(shape, context, selection.keys(context))


def selector_shape(model, format="bf16"):
    """What the formulas of `selkey.bench.selector_cost` need of a model."""
    columns = model.cached_widths[0]
    shape = Shape(model.n_heads, model.n_kv_heads, columns, row_bytes(model, format)[0])
    return shape._replace(index_heads=model.index_heads, index_dim=model.index_dim) if model.index_heads else shape


def decode_bytes(model, context, batch=1, weight_bits=16, format="bf16", selection=None):
    """Bytes that one decode step reads, by part.

    Args:
        context: keys that the new token of every sequence sees.
        batch: sequences.
        weight_bits: of a weight, its scales included; may be a fraction.

    Returns:
        dict: "weights" (all layers; of experts those that the batch is expected to meet), "lm_head", "attention" (rows in whole
        sectors, q, out), "list", "selector". The input embedding is a row a token and not counted.
    """
    selection = selection or own_selection(model)
    parts = parameters(with_indexer(model, selection)).by_part
    experts = parts["experts"] * expected_experts(model, batch) / model.n_experts if model.n_experts else 0
    layers = sum(parts[name] for name in ("attention", "indexer", "mlp", "shared_experts", "router", "norms")) + experts
    lists = list_bytes(model, context, batch, selection)
    return {
        "weights": layers * weight_bits / 8,
        "lm_head": model.vocab * model.hidden * weight_bits / 8,
        "attention": attention_bytes(model, context, batch, format, selection).unique - lists,
        "list": lists,
        "selector": selector_bytes(model, context, batch, format, selection),
    }


def added_indexer(model, selection):
    """A sentence about the indexer that is added to a model, in a list that is empty where none is."""
    more = with_indexer(model, selection)
    if more is model:
        return []
    count = (parameters(more).total - parameters(model).total) / 1e9
    return [f"an indexer of {more.index_heads} × {more.index_dim} is added: {count:.3g} B parameters"]


def expected_experts(model, batch):
    """Distinct experts that a batch meets in a layer, where each token draws its own: E (1 − (1 − k/E)^b)."""
    E = model.n_experts
    return E * (1 - (1 - model.active_experts / E) ** batch) if E else 0


def flops_per_token(model, context, selection=None, causal=False):
    """Operations of the forward pass for one token, by part.

    Args:
        context: keys that it sees; causal: the mean over the tokens of a sequence of that length, as in prefill and training.
        selection: `Selection`; None: `own_selection` of the model.

    Returns:
        dict: "qkv", "attention" (logits and weighted values), "selector" (an indexer's projections included), "attention_out", "mlp",
        "router", "lm_head" → operations. All but "attention" and the scores of the selector sum to 2 · matmul_active,
        an added indexer included.

    A latent row costs latent_dim + rope_dim and latent_dim columns a head where few queries read it, and is expanded into head_dim and
    v_head_dim where all keys are read by many (causal and dense), which is cheaper.
    """
    selection = selection or own_selection(model)
    expanded = not model.is_latent or (causal and selection.is_dense)
    columns = model.head_dim + model.v_head_dim if expanded else 2 * model.latent_dim + model.rope_dim
    out = model.n_heads * model.v_head_dim * model.hidden
    layers, L = model.expert_layers, model.n_layers
    experts = model.active_experts + model.shared_experts
    scores = 0
    if not selection.is_dense:
        seen = (context + 1) / 2 if causal else context
        scores = model.full_layers * SELECTORS[selection.selector].step_flops(selector_shape(model), seen, selection.keys(seen))
    projections = indexer_weights(with_indexer(model, selection))[0]
    return {
        "qkv": 2 * L * (attention_weights(model)[0] - out),
        "attention": 2 * model.n_heads * columns * keys_read(model, context, selection, causal),
        "selector": scores + 2 * L * projections,
        "attention_out": 2 * L * out,
        "mlp": 2
        * ((L - layers) * mlp_weights(model, model.dense_ffn or model.ffn)[0] + layers * experts * mlp_weights(model, model.ffn)[0]),
        "router": 2 * layers * model.n_experts * model.hidden,
        "lm_head": 2 * model.vocab * model.hidden,
    }


def memory(model, context, batch=1, weight_bits=16, format="bf16", selection=None, overhead=CONTEXT_OF_A_PROGRAM):
    """Bytes that decoding holds, by part.

    Args:
        overhead: what the driver and the libraries take, an assumption.

    Returns:
        dict: "weights" (all of them), "kv" (index keys of the model's own indexer included), "selector" (what else it keeps: keys of
        an added indexer, too), "activations" (vectors of one step and logits in fp32; not those of a prefill), "overhead".
    """
    selection = selection or own_selection(model)
    kept = 0
    if not (selection.is_dense or (selection.selector == "indexer" and model.index_dim)):
        kept = batch * model.full_layers * SELECTORS[selection.selector].kept_bytes(selector_shape(model, format), context)
    widest = (model.active_experts + model.shared_experts) * model.ffn if model.n_experts else model.ffn
    vectors = 4 * model.hidden + 2 * model.n_heads * model.head_dim + 3 * widest
    return {
        "weights": parameters(with_indexer(model, selection)).total * weight_bits / 8,
        "kv": kv_bytes(model, context, batch, format),
        "selector": kept,
        "activations": batch * (2 * vectors + 4 * model.vocab),
        "overhead": overhead,
    }
