"""After a model failed in the middle of its layers: some of them have taken up a token, others have not."""


def recover(session):
    """Go back to the newest moment of which there is a whole cache, if the cache is not whole.

    Returns:
        None where it is whole; else what was taken back, in words.
    """
    from selkey.hf.feed import check_whole

    try:
        check_whole(session.cache)
    except (RuntimeError, ValueError):
        return session.go_back()
    return None
