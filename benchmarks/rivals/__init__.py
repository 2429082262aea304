"""The same networks in plain PyTorch, to measure against. Nothing in jaxdiff imports this."""
