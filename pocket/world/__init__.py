"""The world: individuals, scenes with exact masks, prompts."""
