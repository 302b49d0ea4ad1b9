"""The one error of the data package."""


class DataError(RuntimeError):
    """Text, tokens or embeddings cannot be used; the message says what was expected, what was found, and what to do."""
