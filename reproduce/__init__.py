"""The committed figures, a script each: README.md says which command makes which, and how long it takes."""
