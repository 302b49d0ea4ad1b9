"""The tables of the pages, from the committed records."""
