"""CPU kernels, compiled by Numba on explicit register tiles."""
