"""The ELF core: plan, notes, writer, verification."""
