"""Models by name: published architectures, every field with its source."""

from selkey.bench.architecture import Model, Parameters, parameters
from selkey.bench.nearest import unknown
from selkey.bench.sourced import Sourced

__all__ = ["MODELS", "Model", "Parameters", "model", "parameters"]

_CONFIGS = "aiconfigurator model_configs"


def _llama(name, title, n_layers, hidden, n_heads, n_kv_heads, ffn, vocab, max_context, source, head_dim=128, **rest):
    """A decoder with RMSNorm and a gated MLP."""
    return Model(name, title, n_layers, hidden, n_heads, n_kv_heads, head_dim, head_dim, ffn, vocab, max_context, source, **rest)


def _gpt(name, title, n_layers, hidden, n_heads, source, positions=1024, derived=None, notes=""):
    """A decoder with LayerNorm, biases everywhere, learned positions and an MLP four times as wide."""
    return Model(
        name, title, n_layers, hidden, n_heads, n_heads, hidden // n_heads, hidden // n_heads, 4 * hidden, 50257, positions, source,
        is_gated=False, is_tied=True, qkv_bias=True, linear_bias=True, has_norm_bias=True, positions=positions,
        derived=derived or {}, notes=notes,
    )  # fmt: skip


def _latent(name, title, n_heads, vocab, max_context, source, dense_layers, n_experts, **rest):
    """The shape that DeepSeek-V3 introduced: multi-head latent attention, a shared expert, a few dense layers."""
    derived = {
        "n_kv_heads": Sourced(1, "derived", "one latent row of latent_dim + rope_dim columns is cached for all heads"),
        "head_dim": Sourced(192, "derived", "qk_nope_head_dim 128 + qk_rope_head_dim 64"),
    }
    return Model(
        name, title, 61, 7168, n_heads, 1, 192, 128, 2048, vocab, max_context, source, n_experts=n_experts, active_experts=8,
        shared_experts=1, dense_layers=dense_layers, dense_ffn=18432, latent_dim=512, rope_dim=64, q_latent_dim=1536, derived=derived,
        **rest,
    )  # fmt: skip


def _gpt_oss(name, title, n_layers, n_experts):
    return Model(
        name, title, n_layers, 2880, 64, 8, 64, 64, 2880, 201088, 131072, _CONFIGS, qkv_bias=True, linear_bias=True, has_sinks=True,
        n_experts=n_experts, active_experts=4, window=128, window_layers=n_layers // 2, notes="every other layer sees 128 keys",
    )  # fmt: skip


# from memory: the file was not at hand
_MISTRAL_CONFIG = "Mistral-7B-v0.1 config.json, recalled: {}"
_MISTRAL = {
    "max_context": Sourced(32768, "configuration", _MISTRAL_CONFIG.format("max_position_embeddings (the paper says 8,192)")),
    "window": Sourced(4096, "configuration", _MISTRAL_CONFIG.format("sliding_window")),
    "window_layers": Sourced(32, "configuration", _MISTRAL_CONFIG.format("sliding_window, in every layer")),
}
_LLAMA_2 = {"max_context": Sourced(4096, "configuration", "Llama-2 config.json, recalled: max_position_embeddings")}
_GPT2 = "nanoGPT model.py; llm-analysis gpt2 configurations"
_ALL = (
    _gpt("gpt2", "GPT-2 small", 12, 768, 12, _GPT2),
    _gpt("gpt2-medium", "GPT-2 medium", 24, 1024, 16, _GPT2),
    _gpt("gpt2-large", "GPT-2 large", 36, 1280, 20, _GPT2),
    _gpt("gpt2-xl", "GPT-2 XL", 48, 1600, 25, _GPT2),
    _gpt("gpt3-175b", "GPT-3 175B", 96, 12288, 96, "lambdalabs.com on GPT-3 (96 × 128); llm-analysis megatron-lm-175b.json", 2048),
    _llama("llama-2-7b", "Llama 2 7B", 32, 4096, 32, 32, 11008, 32000, 4096, "gpt-fast model.py", derived=_LLAMA_2),
    _llama("llama-2-70b", "Llama 2 70B", 80, 8192, 64, 8, 28672, 32000, 4096, "gpt-fast model.py", derived=_LLAMA_2),
    _llama("llama-3.2-1b", "Llama 3.2 1B", 16, 2048, 32, 8, 8192, 128256, 131072, "Llama-3.2-1B config.json", head_dim=64, is_tied=True),
    _llama("llama-3-8b", "Llama 3.1 8B", 32, 4096, 32, 8, 14336, 128256, 131072, _CONFIGS),
    _llama("llama-3-70b", "Llama 3.1 70B", 80, 8192, 64, 8, 28672, 128256, 131072, _CONFIGS),
    _llama(
        "mistral-7b",
        "Mistral 7B v0.1",
        32,
        4096,
        32,
        8,
        14336,
        32000,
        32768,
        "gpt-fast model.py",
        window=4096,
        window_layers=32,
        derived=_MISTRAL,
    ),  # fmt: skip
    _llama(
        "mixtral-8x7b",
        "Mixtral 8x7B v0.1",
        32,
        4096,
        32,
        8,
        14336,
        32000,
        32768,
        "gpt-fast mixtral-moe/model.py",
        n_experts=8,
        active_experts=2,
    ),  # fmt: skip
    _llama("qwen2.5-7b", "Qwen2.5 7B", 28, 3584, 28, 4, 18944, 152064, 131072, "Qwen2.5-7B config.json", qkv_bias=True),
    _llama("qwen3-0.6b", "Qwen3 0.6B", 28, 1024, 16, 8, 3072, 151936, 40960, "Qwen3-0.6B config.json", is_tied=True, has_qk_norm=True),
    _llama("qwen3-4b", "Qwen3 4B", 36, 2560, 32, 8, 9728, 151936, 40960, "Qwen3-4B config.json", is_tied=True, has_qk_norm=True),
    _llama("qwen3-8b", "Qwen3 8B", 36, 4096, 32, 8, 12288, 151936, 40960, _CONFIGS, has_qk_norm=True),
    _llama("qwen3-32b", "Qwen3 32B", 64, 5120, 64, 8, 25600, 151936, 40960, _CONFIGS, has_qk_norm=True),
    _llama(
        "qwen3-30b-a3b",
        "Qwen3 30B-A3B",
        48,
        2048,
        32,
        4,
        768,
        151936,
        40960,
        _CONFIGS,
        has_qk_norm=True,
        n_experts=128,
        active_experts=8,
    ),  # fmt: skip
    _latent("deepseek-v3", "DeepSeek-V3", 128, 129280, 163840, _CONFIGS, dense_layers=3, n_experts=256),
    _latent(
        "deepseek-v3.2",
        "DeepSeek-V3.2",
        128,
        129280,
        163840,
        _CONFIGS,
        dense_layers=3,
        n_experts=256,
        index_heads=64,
        index_dim=128,
        index_topk=2048,
    ),  # fmt: skip
    _latent("kimi-k2", "Kimi K2", 64, 163840, 131072, _CONFIGS, dense_layers=1, n_experts=384),
    _gpt_oss("gpt-oss-20b", "gpt-oss 20B", 24, 32),
    _gpt_oss("gpt-oss-120b", "gpt-oss 120B", 36, 128),
)
MODELS = {each.name: each for each in _ALL}


def model(name):
    """The preset of that name.

    Raises:
        ValueError: there is none; the message has the nearest names.
    """
    key = str(name).lower()
    if key not in MODELS:
        raise unknown("model", name, MODELS, "`selkey list models` shows all")
    return MODELS[key]
