"""A directory of cores that can be handed over as it is: many processes at once, an index, and what goes with them."""
