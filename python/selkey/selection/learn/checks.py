"""Arguments of `fit`, `evaluate`, `split` and `selkey.hf.teach`: what is wrong is named before anything is computed."""

import math

import torch

from selkey.checks import _is_int, _is_real


def check_count(name, value):
    if not (_is_int(value) and value >= 1):
        raise ValueError(f"{name} must be an int of at least 1; got {value!r}")


def check_amount(name, value):
    if not (_is_real(value) and 0 <= value < math.inf):
        raise ValueError(f"{name} must be a finite number of at least 0; got {value!r}")


def check_seed(seed):
    if not (_is_int(seed) and 0 <= seed < 2**63):
        raise ValueError(f"seed must be an int from 0 to 2**63 - 1; got {seed!r}")


def check_share(name, value):
    if not _is_real(value):
        raise TypeError(f"{name} must be a number; got {value!r}")
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be at least 0 and less than 1; got {value!r}")


def check_all(name, values, kind):
    """A list whose elements are of the class `kind`."""
    if not isinstance(values, (list, tuple)):
        raise TypeError(f"{name} must be a list of {kind.__name__}; got {type(values).__name__}")
    for i, value in enumerate(values):
        if not isinstance(value, kind):
            raise TypeError(f"{name}[{i}] must be of type {kind.__name__}; got {type(value).__name__}")


def check_documents(states, marks, rejected=None):
    """The tensors of each document, as lists: (states, marks), and rejected if there is one.

    A tensor in place of a list is one of documents of one length, stacked.
    """
    columns = {"states": states, "marks": marks} | ({} if rejected is None else {"rejected": rejected})
    for name, column in columns.items():
        columns[name] = column = list(column) if isinstance(column, torch.Tensor) and column.dim() else column
        check_all(name, column, torch.Tensor)
    states = columns["states"]
    if len({len(column) for column in columns.values()}) != 1 or not len(states):
        lengths = ", ".join(f"{len(column)} {name}" for name, column in columns.items())
        raise ValueError(f"{' and '.join(columns)} must be lists of one length, at least 1; got {lengths}")
    for i, state in enumerate(states):
        if state.dim() != 2 or not state.is_floating_point() or state.shape[1] != states[0].shape[-1] or not len(state):
            raise ValueError(
                f"states[{i}] must be floating of shape [N, width], N ≥ 1, all of one width; got {state.dtype} {list(state.shape)}"
            )
        if not state.isfinite().all():
            raise ValueError(f"states[{i}] must be finite; got NaN or infinity")
        for name in list(columns)[1:]:
            flags = columns[name][i]
            if flags.dtype != torch.bool or flags.shape != state.shape[:1]:
                raise ValueError(f"{name}[{i}] must be bool of shape [{len(state)}] as states[{i}]; got {flags.dtype} {list(flags.shape)}")
    return tuple(columns.values())
