"""What `focusdpo bench` measures, and the figures that it wants."""
