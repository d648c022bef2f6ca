"""What `selkey generate` is made of before it generates: sizes, a model and its tokenizer from a folder, the ids of a prompt, a cache."""

import inspect
import warnings

import torch

from selkey import selection
from selkey.bench import units

POLICIES = {
    "sinks": selection.Sinks, "window": selection.Window, "quest": selection.Quest, "key-diff": selection.KeyDiff,
    "oracle": selection.Oracle, "random": selection.Random,
}  # fmt: skip


def parse_sizes(text, names):
    """Read "sinks=4,window=512" → {"sinks": 4, "window": 512}; ValueError where a name is unknown or a number is none."""
    found = {}
    for part in text.split(","):
        name, equals, number = (piece.strip() for piece in part.partition("="))
        if not equals or name not in names or name in found:
            raise ValueError(f"expected sizes such as {names[0]}=4,{names[2]}=512, each of {', '.join(names)} at most once; got {text!r}")
        try:
            found[name] = 0 if number == "0" else units.parse_count(number)
        except ValueError as problem:
            raise ValueError(f"{name}: {problem}") from None
    return found


def parse_policy(text):
    """`parse_sizes` for `policy_of`; ValueError where a policy is to choose nothing."""
    found = parse_sizes(text, tuple(POLICIES))
    for name, keys in found.items():
        if keys == 0:
            raise ValueError(f"{name} must choose at least 1 key; got {name}=0: leave it out, or give it some")
    return found


def policy_of(sizes):
    """`selkey.selection` policy of {name: keys}; ValueError where a size does not fit its policy."""
    members = [POLICIES[name](keys) for name, keys in sizes.items()]
    return members[0] if len(members) == 1 else selection.Union(*members)


def hush():
    """transformers says errors only and draws no bars of its own."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def load(folder, device):
    """Model and tokenizer of a local folder; nothing is downloaded and no code of the folder is run.

    Raises:
        ValueError: it holds no model that transformers can load, or no tokenizer.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no config.json: it must be a model as save_pretrained of transformers writes it")
    hush()
    arguments = dict(local_files_only=True, trust_remote_code=False)
    found = []
    for what, kind, keywords in (("tokenizer", AutoTokenizer, {}), ("model", AutoModelForCausalLM, {"dtype": "auto"})):
        try:
            found.append(kind.from_pretrained(folder, **arguments, **keywords))
        except Exception as problem:  # whatever a broken file makes of it
            line = " ".join(str(problem).split())
            raise ValueError(f"{folder} holds no {what} that transformers can load: {type(problem).__name__}: {line[:300]}") from None
    tokenizer, model = found
    return model.to(device).eval(), tokenizer


def encoded(tokenizer, prompt, is_chat=False):
    """Ids ``[1, P]`` of a prompt; with `is_chat` as a message of a user, by the template of the tokenizer."""
    if not prompt.strip():
        raise ValueError("the prompt is empty: there is nothing to go on from")
    if not is_chat:
        ids = tokenizer(prompt, verbose=False)["input_ids"]
    elif getattr(tokenizer, "chat_template", None) is None:
        raise ValueError("--chat needs a tokenizer with a chat template; this model has none")
    else:
        message = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)["input_ids"]
    if not ids:
        raise ValueError("the tokenizer makes no token of the prompt")
    return torch.tensor([ids])


def prepared(model, asked, tokens):
    """A cache for a model that is to see so many tokens, and its kind in words; the model attends with selkey from now on.

    A model that selects keys itself, where nothing was said about the cache, keeps its own, and its indexers compute with selkey.

    Raises:
        TypeError, ValueError: a model that cannot be served, a size that does not fit.
    """
    from selkey import hf
    from selkey.hf import support

    if "past_key_values" not in inspect.signature(model.base_model.forward).parameters:
        raise ValueError(f"{support.describe(model)} takes no past_key_values: it has no keys and values that selkey could hold")
    longest = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    is_longer = longest is not None and tokens > longest
    is_far = is_longer and asked.bounded is not None
    if is_longer and not is_far:
        said = f"{tokens} tokens are more than the {longest} that the model is made for"
        if not any("rotary" in name for name, _ in model.named_modules()):
            raise ValueError(f"{said}, and it has no rotary positions that could go on: a shorter prompt, or a smaller --max-new-tokens")
        warnings.warn(f"{said}; --bounded moves positions nearer", stacklevel=2)
    policy = policy_of(asked.policy) if asked.policy else None
    try:
        cache = hf.SelkeyCache(model, format=asked.format, policy=policy, bounded=asked.bounded, rope=is_far)
    except ValueError:
        own = _own_selection(model) if asked.is_plain else None
        if own is None:
            raise
        return own, "the model's own; it selects the keys itself"
    kind = "bounded" if asked.bounded is not None else "every key stored"
    if policy is not None:
        kind += f", read by {','.join(f'{name}={keys}' for name, keys in asked.policy.items())}"
    return cache, kind + (", positions moved nearer" if is_far else "")


def _own_selection(model):
    from transformers import DynamicCache

    from selkey import hf

    try:
        hf.replace_indexers(hf.use(model))
    except ValueError:
        return None
    return DynamicCache(config=model.config)
