"""The dataset stages, the store and the metrics: typed records in, typed records out."""
