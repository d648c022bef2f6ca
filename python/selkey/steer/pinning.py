"""Marks as pins of a `SelkeyCache`."""

from selkey.steer import marks as spans


def hold(cache, before, marks):
    """Pin what is marked now and was not, let go of what is not any more, and give each boosted mark its share.

    Args:
        cache: SelkeyCache.
        before, marks: lists of (start, stop, boost), as it is and as it shall be.

    Raises:
        ValueError: the boosts are too much, or a token is not held any more. Nothing has changed then.
    """
    total = sum(boost for *_, boost in marks)
    if total >= 1:
        raise ValueError(f"boosts must leave something for the rest, together below 100 %; these would be {total * 100:.0f} %")
    was, shall = spans.positions(before), spans.positions(marks)
    if shall - was:
        cache.pin(sorted(shall - was))
    if was - shall:
        cache.unpin(sorted(was - shall))
    # boosts that go make room for those that come
    for start, stop, boost in before:
        left = [position for position in range(start, stop) if position in shall]
        if boost and left and (start, stop, boost) not in marks:
            cache.pin(left)
    for start, stop, boost in marks:
        if boost and (start, stop, boost) not in before:
            cache.pin((start, stop), boost=boost)
