"""Quantities made of others: how much larger, and with which power they grow."""

import math

from selkey.bench.quantity import count, evaluate, figure, mapping, number, plain, text

_MOST_DOUBLINGS = 40


def plain_quantity(value):
    """The name of a quantity that is not itself made of others."""
    if value in ("ratio", "exponent"):
        raise ValueError(f"{value} is made of other quantities; name one of those")
    return text(value)


@figure("x")
def ratio(*, of: plain_quantity, a: mapping, b: mapping):
    """Quantity `of` with parameters b over that with parameters a."""
    first, second = evaluate(of, a), evaluate(of, b)
    return second.value / first.value, f"{_short(second)} / {_short(first)} ({of})"


@figure("exponent")
def exponent(*, of: plain_quantity, along: text, at: mapping, doublings: count = 1):
    """The power with which quantity `of` grows with parameter `along`: log2 of the ratio a doubling makes, or several doublings.

    Args:
        at: all parameters, `along` included: where the doublings begin.
    """
    if along not in at:
        raise ValueError(f"at must hold {along}, from which to double")
    if doublings > _MOST_DOUBLINGS:
        raise ValueError(f"doublings must be at most {_MOST_DOUBLINGS}; got {doublings}")
    begin = count(at[along])
    first, last = evaluate(of, at), evaluate(of, at | {along: begin * 2**doublings})
    value = math.log2(last.value / first.value) / doublings
    return value, f"log2({_short(last)} / {_short(first)})" + (f" / {doublings}" if doublings > 1 else "") + f" ({of}, {along} doubled)"


@figure("x")
def quotient(*, of: number, by: number):
    """One published figure over another."""
    return of / by, f"{plain(of)} / {plain(by)}"


@figure("x")
def compounded(*, of: number, by: number, times: number):
    """One published figure over another, as often as a doubling is repeated: from 8 to 32 heads are 2 doublings."""
    return (of / by) ** times, f"({plain(of)} / {plain(by)})^{plain(times)}"


def _short(quantity):
    scaled = quantity.to("GB") if quantity.unit == "B" else quantity
    return f"{plain(scaled.value)} {scaled.unit}"
