"""One process: its snapshot as plain data, and how it is captured."""
