"""The NKAT network: stems, attention with its term, blocks."""
