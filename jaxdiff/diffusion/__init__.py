"""How diffusion works: pure functions on arrays, no Flax, no I/O."""
