"""Studies: the training race, generation token by token, the endurance of a stream, the race over the grid."""
