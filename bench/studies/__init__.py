"""Studies: the training race, generation token by token, the endurance of a stream, formats of weights, the race over
the grid."""
