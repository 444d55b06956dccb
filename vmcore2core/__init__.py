"""vmcore2core: ordinary per-process ELF cores out of Linux kernel crash dumps, without kernel debug information."""

__version__ = "0.1.0"
