"""Tables and pictures of the vision line, from records."""
