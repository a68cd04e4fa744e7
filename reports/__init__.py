"""How results are shown: tables, charts and verdicts, for the page, the studio and the ablation."""
