"""The benchmark of a GPU: ceilings, contests and curves, row by row in a process that may die."""
