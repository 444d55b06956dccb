"""User-space backtraces from a process's memory and registers."""
