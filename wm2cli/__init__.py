"""wm2: train and run global AI weather models from the shell."""

__version__ = "0.1.0"
