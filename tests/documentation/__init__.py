"""README.md and docs/: each block of code is run, or checked; so are commands, links and tables."""
