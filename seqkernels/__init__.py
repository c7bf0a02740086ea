"""Fast recurrent networks and attention for PyTorch."""
