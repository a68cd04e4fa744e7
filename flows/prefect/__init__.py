"""Prefect: flows, tasks, deployments, events, and what a server needs."""
