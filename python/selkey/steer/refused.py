"""What a human is told when something cannot be done."""


class Refused(ValueError):
    """What cannot be done, in a sentence that says what can."""
