"""The commands of `focusdpo`, by what they are about."""
