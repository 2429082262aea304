"""How good images are: `--mode evaluate`, evaluations while a model is trained, and the report of both."""
