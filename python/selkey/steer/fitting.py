"""Whether a model is one that can be steered, said for who has chosen it."""

import re

_NEEDED = "it must be a causal language model with full attention in some layer and rotary positions, as Llama, Qwen and Gemma are"


def check(model):
    """ValueError with a sentence where a session cannot be made of a model of transformers."""
    from selkey.hf.model_rope import rope_of
    from selkey.hf.served import Served

    served = Served(model)
    try:
        if "full_attention" not in served.kinds()[0]:
            raise ValueError("none of its layers has full attention, so nothing of it is folded and nothing can be marked")
        rope_of(model, served)
    except ValueError as problem:
        raise misfit(type(model).__name__, _reason(str(problem), str(served))) from problem


def misfit(name, reason):
    """The ValueError for a model that is none."""
    return ValueError(f"{name} cannot be steered: {_NEEDED}; {reason}")


def _reason(sentence, served):
    """Without the name again, and what is said to who writes programs."""
    return re.split(r"[:;.,] use ", sentence.rpartition(served)[2].lstrip(": "), flags=re.IGNORECASE)[0]
