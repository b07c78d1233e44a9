"""Training: what turns analyses into weights."""
