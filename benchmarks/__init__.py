"""Measurements of the project that take minutes and are not tests."""
