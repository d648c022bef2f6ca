"""What a `SelkeyCache` gives a model in place of keys and values: a promise of rows that only the attention "selkey" can redeem."""


class Handle:
    """New keys and values of a layer on their way to the attention, which will find the older ones in the layer.

    It is no tensor. It tells the shape, dtype and device that a plain cache's keys would have; whatever else is done with it is an error
    that names the model, because what a model computes from cached rows between cache and attention cannot be computed here.

    Args:
        layer: the `SelkeyLayer` that made it.
        keys, values: the new rows, ``[B, HK, S, D]`` and ``[B, HK, S, DV]``.
        seen: slots before them.
    """

    def __init__(self, layer, keys, values, seen):
        self.layer, self.keys, self.values = layer, keys, values
        self.shape = keys.shape[:2] + (seen + keys.shape[2],) + keys.shape[3:]
        self.dtype, self.device = keys.dtype, keys.device

    def __getattr__(self, name):
        if name.startswith("__"):
            # how Python and its libraries ask what an object can do
            raise AttributeError(name)
        raise self._refusal(name)

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), keywords=None):
        handle = _find([*arguments, *(keywords or {}).values()])
        name = getattr(function, "__name__", str(function))
        raise handle._refusal(name) if handle is not None else TypeError(f"{name} takes tensors; got a Handle of a SelkeyCache")

    def _refusal(self, use):
        return ValueError(
            f"{self.layer.served} computes with cached keys or values between the cache and the attention ({use}), or calls another "
            "attention than 'selkey', so SelkeyCache cannot serve it: use DynamicCache(config=model.config); "
            "if model.set_attn_implementation was called since, set 'selkey' again"
        )

    def __repr__(self):
        return f"Handle({list(self.shape)}, {self.dtype})"


def _find(values):
    for value in values:
        if isinstance(value, Handle):
            return value
        if isinstance(value, (list, tuple)) and (found := _find(value)) is not None:
            return found
    return None


def _refused(name):
    def refuse(self, *arguments):
        raise self._refusal(name)

    return refuse


for _name in (
    "getitem setitem len iter contains bool float int add radd sub rsub mul rmul truediv rtruediv pow rpow neg abs matmul rmatmul "
    "iadd isub imul itruediv and or invert lt le gt ge"
).split():
    setattr(Handle, f"__{_name}__", _refused(_name))
