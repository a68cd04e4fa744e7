"""The second edition of the pocket suite: a world that has the field's disease, and its models."""
