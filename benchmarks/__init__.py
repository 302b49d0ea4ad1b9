"""The project's speed against a plain reading of the notes; README.md says how it is measured."""
