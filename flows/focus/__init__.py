"""focus-maps: what the loss looks at."""
