"""How a model is fitted: the loop, its optimizer, its checkpoints; and what a recipe is."""
