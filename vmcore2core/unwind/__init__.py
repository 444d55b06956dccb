"""User-space backtraces out of a process's memory and registers alone."""
