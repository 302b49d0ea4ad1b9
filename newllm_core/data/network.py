"""What a failed connection to the Hub raises, whichever of its clients is installed."""


def network_errors() -> tuple[type[Exception], ...]:
    """For an ``except`` clause: impossible names, files that are not there, refused and broken connections, and
    answers that are errors.

    A broken connection is no OSError: huggingface_hub passes on what its HTTP library raises (httpx in version 1,
    httpx2 in version 2, requests before), which is the other base of its own HTTP error.
    """
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError  # imported here: slow

    return (OSError, EntryNotFoundError, HFValidationError, *HfHubHTTPError.__bases__)  # type: ignore[return-value]
