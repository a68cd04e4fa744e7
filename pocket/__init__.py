"""The pocket suite: an embedded world, its models and the recipes that train them.

- `world/`: individuals, who meets whom, bodies, places, prompts in right English.
- `models/`: generator, segmenter, identity encoder, CLIP, judge, autoencoder; the prompts' tokens.
- `fitting/`: the one training loop, and what a recipe is. `recipes/`: a model's row each.
- Measures: `figures` (of each model), `faults` (the judge's check), `check` (the generator's).
- `loading`: the parts by name.
"""
