"""The records that flow between stages: frozen, typed, without behaviour."""
