"""What of a model's config decides the rows of a cache, and how two of them differ. Weights are not compared."""

import json

# who the model is, how it is run and how it ends, none of which changes a key
_VOLATILE = {
    "architectures", "chunk_size_feed_forward", "dtype", "id2label", "label2id", "name_or_path", "problem_type", "quantization_config",
    "return_dict", "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip


def comparable(config):
    """The keys of a config that count, as JSON gives them back."""
    kept = {name: value for name, value in config.to_dict().items() if not _is_volatile(name)}
    return json.loads(json.dumps(kept, default=str))


def differences(one, other):
    """Sentences about the keys in which two configs differ; a key that only one of them knows is of another version of transformers."""
    return [f"{name} {one[name]} instead of {other[name]}" for name in sorted(one.keys() & other.keys()) if one[name] != other[name]]


def _is_volatile(name):
    return name in _VOLATILE or name.startswith(("_", "output_", "initializer_")) or name.endswith("_token_id") or "dropout" in name
