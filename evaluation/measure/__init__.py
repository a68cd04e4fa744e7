"""Pictures from any model in, leakage out: tables, judges, planted faults, public layouts."""
