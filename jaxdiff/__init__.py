"""jaxdiff: a pure-functional diffusion library and trainer in JAX."""

__version__ = "0.1.0"
