"""What the tests of index scores share: inputs that poison what is dropped, the plainest code, the bound of an error."""

import dataclasses

import torch

from selkey.indexing.functional import index_scores
from selkey.testing import odd_strides


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes and switches of one call; the letters are those of `selkey.index_scores`."""

    S: int = 3
    N: int = 37
    HI: int = 6
    DI: int = 20
    B: int = 2
    dtype: torch.dtype = torch.float32
    key_dtype: torch.dtype | None = None
    activation: str = "relu"
    scale: float | None = None
    weights: bool = True
    key_scales: bool = False
    kv_lengths: bool = False
    causal: str | None = None  # query_offset as "int" or as "tensor"
    strided: bool = False

    def __str__(self):
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        changed = {name: value for name, value in fields.items() if value != getattr(Case(), name)}
        return " ".join(f"{name}={str(value).removeprefix('torch.')}" for name, value in changed.items()) or "defaults"


def make_inputs(case, device="cpu"):
    """Arguments of `index_scores`; a key that no query sees is NaN, and so is its scale."""
    B, S, N = case.B, case.S, case.N
    fine = case.dtype if case.dtype == torch.float64 else torch.float32
    tensors = {
        "q_index": torch.randn(B, S, case.HI, case.DI).to(case.dtype),
        "k_index": torch.randn(B, N, case.DI),
        "weights": torch.randn(B, S, case.HI, dtype=fine) if case.weights else None,
        "key_scales": torch.randn(B, N, dtype=fine) if case.key_scales else None,
        "kv_lengths": torch.tensor([N - 4, N + 9, -1][:B], dtype=torch.int32) if case.kv_lengths else None,
        "query_offset": {None: None, "int": N - S - 3, "tensor": torch.tensor([N - S - 2, -2, 5][:B])}[case.causal],
    }
    options = {"activation": case.activation, "scale": case.scale}
    dropped = ~visible(tensors | options).any(1)
    tensors["k_index"][dropped] = float("nan")
    tensors["k_index"] = tensors["k_index"].to(case.key_dtype or case.dtype)
    if case.key_scales:
        tensors["key_scales"][dropped] = float("nan")
    if case.strided:
        tensors = {name: odd_strides(x) if name != "query_offset" and x is not None else x for name, x in tensors.items()}
    tensors = {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in tensors.items()}
    return tensors | options


def visible(inputs):
    """``[B, S, N]``: counted key by key."""
    (B, S), N = inputs["q_index"].shape[:2], inputs["k_index"].shape[1]
    lengths, offsets = inputs["kv_lengths"], inputs["query_offset"]
    mask = torch.zeros(B, S, N, dtype=torch.bool)
    for b in range(B):
        for s in range(S):
            length = N if lengths is None else int(lengths[b])
            if offsets is not None:
                length = min(length, int(offsets[b] if isinstance(offsets, torch.Tensor) else offsets) + s + 1)
            mask[b, s, : max(0, length)] = True
    return mask.to(inputs["q_index"].device)


def plain(inputs, dtype=None):
    """Scores as most model code computes them, all heads at once, in `dtype` (default that of q)."""
    q = inputs["q_index"] if dtype is None else inputs["q_index"].to(dtype)
    mask = visible(inputs)
    k = inputs["k_index"].to(q.dtype).masked_fill(~mask.any(1)[..., None], 0.0)
    if inputs["key_scales"] is not None:
        k = k * inputs["key_scales"].to(q.dtype).masked_fill(~mask.any(1), 0.0)[..., None]
    products = torch.einsum("bshd,bnd->bshn", q, k) * (q.shape[-1] ** -0.5 if inputs["scale"] is None else inputs["scale"])
    terms = products.relu() if inputs["activation"] == "relu" else products
    if inputs["weights"] is not None:
        terms = terms * inputs["weights"].to(q.dtype)[..., None]
    return terms.sum(2).masked_fill(~mask, -torch.inf)


def promoted(inputs):
    """The same numbers in float64."""
    return {name: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for name, x in inputs.items()}


def reference(inputs):
    return index_scores(**promoted(inputs), backend="reference")


def magnitude(inputs):
    """The same call on magnitudes: what roundings are relative to."""
    sizes = {name: x.abs() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for name, x in promoted(inputs).items()}
    return sizes | {"activation": "none", "scale": abs(inputs["scale"]) if inputs["scale"] is not None else None}
