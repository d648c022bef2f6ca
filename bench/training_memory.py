"""Memory of training: bytes a parameter, how ZeRO spreads them, and activations. Pure functions.

Rajbhandari et al. 2020 (ZeRO) for what is spread, Korthikanti et al. 2022 for activations: a GPT layer keeps s·b·h · (34 + 5·a·s/h) bytes
of 16-bit activations, and s·b·h · 34 where attention does not store its scores.
"""

# precision → bytes a parameter of (weights, gradients, master copy): 16-bit weights have a master copy in fp32
PRECISIONS = {"bf16": (2, 2, 4), "fp32-grads": (2, 4, 4)}
# optimizer → (bytes of its states, whether it keeps the master copy)
OPTIMIZERS = {"adamw": (8, True), "adam8bit": (2, False), "sgd": (4, True)}


def bytes_of_parameter(optimizer="adamw", precision="bf16"):
    """part → bytes of one parameter: 16 with AdamW, 18 with its gradients in fp32, 6 with 8-bit states and no master copy."""
    weights, gradients, master = PRECISIONS[precision]
    states, has_master = OPTIMIZERS[optimizer]
    return {"weights": weights, "gradients": gradients, "optimizer": states + (master if has_master else 0)}


def state_bytes(n_parameters, optimizer="adamw", precision="bf16"):
    """Weights, gradients and optimizer of a model, once."""
    return n_parameters * sum(bytes_of_parameter(optimizer, precision).values())


def sharded(n_parameters, optimizer="adamw", precision="bf16", zero=3, n_devices=1):
    """part → bytes on one device: stage 1 spreads the optimizer, 2 the gradients too, 3 the weights too."""
    spread = ("optimizer", "gradients", "weights")[:zero]
    parts = bytes_of_parameter(optimizer, precision)
    return {name: n_parameters * size / (n_devices if name in spread else 1) for name, size in parts.items()}


def activations(model, sequence, batch=1, recompute=False):
    """Bytes that the backward pass needs of the forward pass, on one device that holds all layers; attention stores no scores.

    With full recomputation: the input of every layer, and everything of the one that is at work. Logits are fp32.
    """
    tokens = sequence * batch
    layers = [layer_activations(model, is_expert=False)] * (model.n_layers - model.expert_layers)
    layers += [layer_activations(model, is_expert=True)] * model.expert_layers
    kept = 2 * model.hidden * model.n_layers + max(layers) if recompute else sum(layers)
    return tokens * (kept + 2 * model.hidden + 4 * model.vocab)


def layer_activations(model, is_expert):
    """Bytes of one token in one layer, 16-bit numbers: 34 hidden for a GPT.

    Inputs of both norms and of what follows them, q, k, v, the output of attention, and inside the MLP what its activation takes and
    gives (gated: both branches, the activated one, their product). Models without a gate are those trained with dropout: its two masks take
    a byte an element.
    """
    h = model.hidden
    attention = model.n_heads * (model.head_dim + model.v_head_dim) + model.n_kv_heads * (model.head_dim + model.v_head_dim)
    if model.is_latent:  # keys and values are written out, one a query head
        attention += model.n_heads * (model.head_dim + model.v_head_dim) + model.latent_dim + model.q_latent_dim
    width = (model.active_experts + model.shared_experts) * model.ffn if is_expert else model.dense_ffn or model.ffn
    inside = (4 if model.is_gated else 2) * width
    return 2 * (4 * h + attention + inside) + (0 if model.is_gated else 2 * h)


def stored_scores(model, sequence, batch=1, recompute=False):
    """Bytes that are added where attention stores its scores, their softmax and a dropout mask: 5 · heads · s² · b a layer."""
    return 5 * model.n_heads * sequence**2 * batch * (1 if recompute else model.n_layers)
