"""How good generated images are, from features or logits of them: NumPy and SciPy in float64, no network and no I/O.

`frechet` and `kernel` compare two sets of features by one number, `neighbours` tells quality from variety and finds
copies, `logits` scores what a classifier says, `fidelity` how well images obey hints. Wrong input is a ValueError that
says which set and what it must be.
"""
