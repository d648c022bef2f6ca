"""A number and where it comes from: every figure of a device or a model that nobody here measured."""

from dataclasses import dataclass

KINDS = ("datasheet", "configuration", "derived", "measured")


@dataclass(frozen=True)
class Sourced:
    """One figure.

    Attributes:
        value: in the unit that the name of the field says.
        kind: "datasheet" (a maker's promise), "configuration" (a published model configuration), "derived" (computed from other
            figures, the source says how) or "measured".
        source: document, or the arithmetic.
    """

    value: object
    kind: str
    source: str

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {self.kind!r}")
        if not self.source:
            raise ValueError("source must say where the figure comes from")
