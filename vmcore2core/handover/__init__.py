"""A directory of cores, ready to hand over: many processes at once, an index, and the files that debuggers need."""
