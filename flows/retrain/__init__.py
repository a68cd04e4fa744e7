"""The job retrain: build, decide, train, evaluate, promote."""
