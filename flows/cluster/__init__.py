"""Stages on Ray: resident models in actors, a task per group of partitions."""
