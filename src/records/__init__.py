"""Records: rows, their schema, writing and reading them, and which belong together."""
