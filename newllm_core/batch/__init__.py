"""Notebooks with parameters, one or many."""
