"""The small judge of photographs: its weights, and what its own check says of it."""
