"""NKAT Stage 2 (nkat.md): a small vision transformer, judged by how well it generalises for the theory it carries."""
