"""`focusdpo studio`: a local web application to look into a dataset, its runs and evaluations."""
