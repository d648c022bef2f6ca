"""A selector in a file: safetensors, whole or not at all, with the SHA-256 of what it holds."""

from selkey import tensor_file
from selkey.checks import _is_int
from selkey.selection.learn.selector import Selector

FILE = tensor_file.Kind("selkey.Selector", "1", "selector", "selkey.selection.learn.save")


def save(selector, path, states=""):
    """Write a selector to `path`; until all is on the disk, what was there stays.

    Args:
        selector: `Selector`.
        path: of the file.
        states: what the hidden states are, such as "all-MiniLM-L6-v2, last layer"; `load` can ask for the same.

    Raises:
        OSError: the file cannot be written; nothing has changed then.
    """
    description = {"width": selector.width, "hidden": selector.hidden, "states": states}
    tensor_file.write(path, FILE, {name: tensor.detach() for name, tensor in selector.state_dict().items()}, description)


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
        selector = Selector(description["width"], description["hidden"])
        layout = {name: (tensor.shape, tensor.dtype) for name, tensor in selector.state_dict().items()}
        tensor_file.check_tensors(path, FILE, file, layout)
        selector.load_state_dict({name: file.get_tensor(name) for name in layout})
    return selector.eval()


def _check(path, description):
    """What `load` needs of a description; sizes bounded, because larger ones would be built before the tensors are looked at."""
    is_whole = isinstance(description, dict) and {"width", "hidden", "states"} <= set(description)
    if not is_whole or not all(_is_int(description[name]) and 1 <= description[name] <= 2**20 for name in ("width", "hidden")):
        raise ValueError(f"{path} must describe a selector of width and hidden 1 … {2**20} and its states; got {description!r}")
