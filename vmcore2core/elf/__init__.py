"""ELF: headers, sections and notes, wherever their bytes are: a dump, a file, memory, a core that is written."""
