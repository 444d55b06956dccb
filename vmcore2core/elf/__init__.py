"""ELF headers, sections and notes in any source: a dump, a file, memory, or a finished core."""
