"""Prefect flows, configuration, wiring, report and the command line."""
