"""New-LLM: a language model without attention, trained in two phases."""

__version__ = "0.1.0"
