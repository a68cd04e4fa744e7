"""Build, train and evaluate by turns, each round painted by the one before."""
