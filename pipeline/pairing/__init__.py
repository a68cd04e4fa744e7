"""What is taken out of a root, and how damage is mended."""
