"""Which transformers and which models selkey can serve, and how errors call them."""

import re

OLDEST = (5, 16)


def version():
    """The version of transformers, a string."""
    import transformers

    return transformers.__version__


def describe(model):
    """A model, or a module of one, as errors name it: class and version of transformers."""
    return f"{type(model).__name__} (transformers {version()})"


def check_transformers():
    """transformers is there and has what selkey calls.

    Raises:
        ImportError: it is missing or too old, or keeps its attention interface or cache elsewhere; says what to install.
    """
    oldest = ".".join(map(str, OLDEST))
    try:
        import transformers
    except ModuleNotFoundError:
        raise ImportError(f"selkey.hf needs transformers ≥ {oldest}; it is not installed: pip install 'transformers>={oldest}'") from None
    numbers = re.match(r"(\d+)\.(\d+)", transformers.__version__)
    if numbers is None or tuple(map(int, numbers.groups())) < OLDEST:
        raise ImportError(f"selkey.hf needs transformers ≥ {oldest}; got {transformers.__version__}: pip install -U transformers")
    try:
        from transformers import AttentionInterface, AttentionMaskInterface  # noqa: F401
        from transformers.cache_utils import Cache, CacheLayerMixin  # noqa: F401
        from transformers.masking_utils import causal_mask_function, eager_mask, sdpa_mask  # noqa: F401
    except ImportError as problem:
        raise ImportError(
            f"selkey.hf does not know transformers {transformers.__version__}, whose interfaces have moved ({problem}): "
            "install a version that it was tested with, pip install 'transformers==5.23.*'"
        ) from problem


def check_model(model):
    """A model of transformers whose attention goes through AttentionInterface; returns it without its adapters.

    Raises:
        ImportError: as `check_transformers`.
        TypeError: it is no model of transformers.
        ValueError: it computes attention itself.
    """
    check_transformers()
    from transformers import PreTrainedModel

    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not isinstance(inner, PreTrainedModel):
        raise TypeError(f"model must be a transformers PreTrainedModel, or one with peft adapters; got {type(model).__name__}")
    if not inner._can_set_attn_implementation():
        raise ValueError(
            f"model must call transformers' AttentionInterface; {describe(inner)} computes its attention itself, where no "
            "implementation can be set: use a model that does, or keep this one as it is"
        )
    return inner


def check_no_dropout(name, value):
    """The probability of dropping attention weights is 0: lists have no dropout."""
    if value:
        raise ValueError(
            f"attn_implementation='selkey' has no dropout of attention weights where keys are selected; got {name}={value}: "
            "set config.attention_dropout = 0, or use attn_implementation='sdpa'"
        )
