"""What tests of the server of `selkey steer` look at in an answer, and in the writer behind it."""

HOST = "127.0.0.1:8642"


def standing(writer):
    """All that a refused request must leave as it is."""
    return len(writer.done), {name: value for name, value in writer.state().items() if name not in ("version", "tokens", "left")}


def refused(found, *statuses):
    assert found.status_code in statuses, (found.status_code, found.text)
    error = found.json()["error"]
    assert list(found.json()) == ["error"] and " " in error and error.isprintable() and "Traceback" not in error and len(error) < 400
    return error
