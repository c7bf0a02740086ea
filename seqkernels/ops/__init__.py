"""Registration of the operators with torch.library, and the drivers that call the kernels."""
