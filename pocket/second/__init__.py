"""The second edition of the pocket suite: a world that has the field's disease, and its models.

- World: `identities` (individuals), `casting` (who meets whom), `sprites`, `backgrounds`, `world`.
- Words: `grammar` (prompts), `vocabulary` (tokens and their embeddings).
- Models: `generator`; `segmenter` and `judge`, which both find `bodies`; `clip`. Autoencoder and
  identity encoder are the first edition's classes in other sizes.
- Measures: `figures` (of each model), `faults` (the judge's check), `check` (the generator's).
- `recipes/`: `training` (the one loop), `recipe` (what a recipe is), `table` (all of them, and the
  driver), a module for each model's row.

It takes the first edition's place by moving its modules over those of the same name; `place` then
goes, and with it the recipes' `common`, `fitting`, `running` and `corpus`.
"""
