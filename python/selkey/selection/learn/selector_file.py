"""A selector in a file: safetensors, whole or not at all, with the SHA-256 of what it holds."""

import torch

from selkey import tensor_file
from selkey.checks import _is_int
from selkey.selection.learn.selector import Selector

FILE = tensor_file.Kind("selkey.Selector", "1", "selector", "selkey.selection.learn.save")


def save(selector, path, states=""):
    """Write a selector to `path`, in fp32 whatever it is in; until all is on the disk, what was there stays.

    Args:
        selector: `Selector`.
        path: of the file.
        states: what the hidden states are, such as "all-MiniLM-L6-v2, last layer"; `load` can ask for the same.

    Raises:
        TypeError: selector is no `Selector`, or states is no string.
        OSError: the file cannot be written; nothing has changed then.
    """
    if not isinstance(selector, Selector):
        raise TypeError(f"selector must be a Selector; got {type(selector).__name__}")
    if not isinstance(states, str):
        raise TypeError(f"states must be a string, the name of the hidden states; got {type(states).__name__}")
    description = {"width": selector.width, "hidden": selector.hidden, "states": states}
    tensor_file.write(path, FILE, {name: tensor.detach().float() for name, tensor in selector.state_dict().items()}, description)


def load(path, width=None, states=None):
    """The selector that `save` wrote, in evaluation mode on the CPU.

    Args:
        path: of the file.
        width: of the hidden states that it will be given; None: any.
        states: what they are, as said to `save`; None: anything.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no such file, of another version, not whole or damaged, or made for states of another width or kind.
    """
    with tensor_file.opened(path, FILE) as (file, description):
        _check(path, description)
        for name, words, wanted in (("width", "of width", width), ("states", "named", states)):
            if wanted is not None and description[name] != wanted:
                raise ValueError(f"{path} must be a selector for hidden states {words} {wanted!r}; it is for {description[name]!r}")
        # nothing is built before the file is known to hold tensors of such sizes
        layout = _layout(description["width"], description["hidden"])
        tensor_file.check_tensors(path, FILE, file, layout)
        with torch.random.fork_rng(devices=[]):
            selector = Selector(description["width"], description["hidden"])
        selector.load_state_dict({name: file.get_tensor(name) for name in layout})
    return selector.eval()


def is_selector(path):
    """Whether there is a file that `save` wrote, in this version or another; `load` says whether it is undamaged."""
    return tensor_file.is_of(path, FILE)


def _layout(width, hidden):
    """{name: (shape, dtype)} of the tensors of a selector, as its state_dict has them."""
    shapes = {
        "mean": (width,), "deviation": (width,), "network.1.weight": (hidden, width), "network.1.bias": (hidden,),
        "network.4.weight": (1, hidden), "network.4.bias": (1,),
    }  # fmt: skip
    return {name: (shape, torch.float32) for name, shape in shapes.items()}


def _check(path, description):
    """What `load` needs of a description."""
    is_whole = isinstance(description, dict) and {"width", "hidden", "states"} <= set(description)
    if not is_whole or not all(_is_int(description[name]) and 1 <= description[name] <= 2**20 for name in ("width", "hidden")):
        raise ValueError(f"{path} must describe a selector of width and hidden 1 … {2**20} and its states; got {description!r}")
