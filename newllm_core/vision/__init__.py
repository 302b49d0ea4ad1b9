"""NKAT Stage 2: a small vision transformer, judged by how well it generalises for the theory it carries.

Source: docs/method.md, section 12.
"""
