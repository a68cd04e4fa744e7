"""Pictures from any model, measured."""
