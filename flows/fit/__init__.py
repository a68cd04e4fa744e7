"""Whether a command fits a machine: what it takes, what there is, what helps."""
