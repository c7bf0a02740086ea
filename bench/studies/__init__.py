"""Studies: the training race, generation token by token, the endurance of a stream, formats of weights, the race over
the grid."""

STUDIES = ("training", "generation", "endurance", "formats", "race")  # in their order
