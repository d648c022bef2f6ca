"""What a decoder is made of: widths, heads, layers, experts, what it caches; and how many parameters that makes.

A head's width is a figure of its own: in a third of the presets n_heads · head_dim is not the hidden size.
"""

import functools
from dataclasses import dataclass, field, fields, replace

from selkey.bench.sourced import Sourced


@dataclass(frozen=True)
class Model:
    """A decoder.

    Attributes:
        n_heads, n_kv_heads: query heads, and key-value heads that are cached. Multi-head latent attention caches one row for all
            heads: n_kv_heads is 1.
        head_dim, v_head_dim: columns of a query (and key), and of a value, before the latent is folded into them.
        ffn: width of the MLP, of one expert where there are experts.
        is_gated: three matrices an MLP (SwiGLU) instead of two.
        is_tied: the LM head is the table of input embeddings.
        qkv_bias, linear_bias: a bias on q, k and v; on every other matrix of a layer.
        has_norm_bias, has_qk_norm, has_sinks: LayerNorm instead of RMSNorm; a norm over each head of q and k; a logit a head.
        positions: rows of learned position embeddings.
        n_experts, active_experts, shared_experts: of an expert layer; shared ones work for every token and are not among n_experts.
        dense_layers, dense_ffn: the first so many layers have one MLP of that width instead of experts.
        window, window_layers: so many layers see, and cache, the last `window` keys only.
        latent_dim, rope_dim, q_latent_dim: multi-head latent attention; rope_dim columns of head_dim carry the position.
        index_heads, index_dim, index_topk: the trained indexer that comes with the model: one index key a token and layer.
        max_context: positions that the model was trained for.
        source: of every field that `derived` does not name.
        notes: what a reader should know.
        derived: field → Sourced, where kind or source differs.
    """

    name: str
    title: str
    n_layers: int
    hidden: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    v_head_dim: int
    ffn: int
    vocab: int
    max_context: int
    source: str
    is_gated: bool = True
    is_tied: bool = False
    qkv_bias: bool = False
    linear_bias: bool = False
    has_norm_bias: bool = False
    has_qk_norm: bool = False
    has_sinks: bool = False
    positions: int = 0
    n_experts: int = 0
    active_experts: int = 0
    shared_experts: int = 0
    dense_layers: int = 0
    dense_ffn: int = 0
    window: int | None = None
    window_layers: int = 0
    latent_dim: int = 0
    rope_dim: int = 0
    q_latent_dim: int = 0
    index_heads: int = 0
    index_dim: int = 0
    index_topk: int = 0
    notes: str = ""
    derived: dict = field(default_factory=dict, hash=False)

    def __post_init__(self):
        for name in ("n_layers", "hidden", "n_heads", "n_kv_heads", "head_dim", "v_head_dim", "ffn", "vocab", "max_context"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} of {self.name} must be at least 1; got {getattr(self, name)}")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads of {self.name} must be a multiple of n_kv_heads, {self.n_kv_heads}; got {self.n_heads}")
        if self.active_experts > self.n_experts:
            raise ValueError(f"active_experts of {self.name} must be at most n_experts, {self.n_experts}; got {self.active_experts}")
        for name in ("window_layers", "dense_layers"):
            if not 0 <= getattr(self, name) <= self.n_layers:
                raise ValueError(f"{name} of {self.name} must lie between 0 and n_layers, {self.n_layers}; got {getattr(self, name)}")
        if bool(self.window) != bool(self.window_layers):
            raise ValueError(f"window and window_layers of {self.name} go together; got {self.window} and {self.window_layers}")
        if self.latent_dim and (self.n_kv_heads != 1 or not 0 < self.rope_dim < self.head_dim):
            raise ValueError(f"{self.name} caches a latent: n_kv_heads must be 1 and rope_dim between 0 and head_dim")

    def figure(self, name):
        """A field with its kind and source."""
        value = getattr(self, name)
        sourced = self.derived.get(name, Sourced(value, "configuration", self.source))
        return replace(sourced, value=value)

    def figures(self):
        """Every field of the architecture → Sourced."""
        return {
            each.name: self.figure(each.name) for each in fields(self) if each.name not in ("name", "title", "source", "notes", "derived")
        }

    def replace(self, **changes):
        """Another model with some fields changed, which are derived figures then; checked like any other."""
        derived = self.derived | {name: Sourced(value, "derived", f"{self.name} with another {name}") for name, value in changes.items()}
        return replace(self, **{"derived": derived} | changes)

    @property
    def is_latent(self):
        """Whether it caches one latent row for all heads (MLA)."""
        return self.latent_dim > 0

    @property
    def expert_layers(self):
        return self.n_layers - self.dense_layers if self.n_experts else 0

    @property
    def full_layers(self):
        """Layers that see every key."""
        return self.n_layers - self.window_layers

    @property
    def cached_widths(self):
        """Columns of a (key row, value row) of one KV head in the cache; a latent row holds both, its value has no row."""
        return (self.latent_dim + self.rope_dim, 0) if self.is_latent else (self.head_dim, self.v_head_dim)


@dataclass(frozen=True)
class Parameters:
    """How many parameters a model has.

    Attributes:
        total: all of them.
        active: those that one token meets, embeddings included, the chosen experts only.
        embedding: input table and positions; what an untied LM head has is not in it.
        matmul_active: matrices that one token is multiplied with, the LM head among them (tied or not).
        by_part: "embedding", "attention", "indexer", "mlp", "experts", "shared_experts", "router", "norms", "lm_head" → count; they
            sum to total.
    """

    total: int
    active: int
    embedding: int
    matmul_active: int
    by_part: dict


@functools.lru_cache
def parameters(model):
    """Count the parameters of a model, biases, norms and sinks included; multi-token prediction layers are not."""
    L, h = model.n_layers, model.hidden
    attention, attention_bias, qk_norms = attention_weights(model)
    bias = model.linear_bias
    indexer, indexer_rest = indexer_weights(model)
    expert, expert_bias = mlp_weights(model, model.ffn)
    E, experts_of_token, layers = model.n_experts, model.active_experts, model.expert_layers
    dense, dense_bias = mlp_weights(model, model.dense_ffn or model.ffn)
    norm = h * (2 if model.has_norm_bias else 1)
    embedding = model.vocab * h
    parts = {
        "embedding": embedding + model.positions * h,
        "attention": L * (attention + attention_bias),
        "indexer": L * (indexer + indexer_rest),
        "mlp": (L - layers) * (dense + dense_bias),
        "experts": layers * E * (expert + expert_bias),
        "shared_experts": layers * model.shared_experts * (expert + expert_bias),
        "router": layers * (E * h + (E if bias else 0)),
        "norms": (2 * L + 1) * norm + L * qk_norms,
        "lm_head": 0 if model.is_tied else embedding,
    }
    total = sum(parts.values())
    idle = layers * (E - experts_of_token) * (expert + expert_bias)
    matrices = (
        L * (attention + indexer) + (L - layers) * dense + layers * ((experts_of_token + model.shared_experts) * expert + E * h) + embedding
    )
    return Parameters(total, total - idle, parts["embedding"], matrices, parts)


def attention_weights(model):
    """(matrix elements, bias and sink elements, elements of norms inside) of the attention of one layer."""
    h, H, HK = model.hidden, model.n_heads, model.n_kv_heads
    if model.is_latent:
        nope = model.head_dim - model.rope_dim
        q = model.q_latent_dim * (h + H * model.head_dim) if model.q_latent_dim else h * H * model.head_dim
        kv = h * (model.latent_dim + model.rope_dim) + model.latent_dim * H * (nope + model.v_head_dim)
        return q + kv + H * model.v_head_dim * h, 0, model.latent_dim + model.q_latent_dim
    columns = H * model.head_dim + HK * (model.head_dim + model.v_head_dim)
    extra = (columns if model.qkv_bias else 0) + (h if model.linear_bias else 0) + (H if model.has_sinks else 0)
    return h * columns + H * model.v_head_dim * h, extra, 2 * model.head_dim if model.has_qk_norm else 0


def indexer_weights(model):
    """(matrix elements, norm elements) of the indexer of one layer: queries from the query latent, one key, one weight a head."""
    if not model.index_heads:
        return 0, 0
    width = model.q_latent_dim or model.hidden
    return width * model.index_heads * model.index_dim + model.hidden * (model.index_dim + model.index_heads), 2 * model.index_dim


def mlp_weights(model, width):
    """(matrix elements, bias elements) of one MLP or expert of that width."""
    count = 3 if model.is_gated else 2
    return count * model.hidden * width, ((count - 1) * width + model.hidden) if model.linear_bias else 0
