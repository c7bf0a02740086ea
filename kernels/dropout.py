"""What all backends agree on about the dropout of attention's weights, so that a seed means the same on each.

Philox4x32-7 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) of the counter (s // 8, t, b N + n, 0)
under the key `seed`, 64 bits, gives four words for the keys s // 8 * 8 ... of query t of head n of batch b: eight
numbers of 16 bits, of each word the low half first. A weight is kept where its number is at least `threshold(p)`.
"""

ROUNDS = 7
MULTIPLIERS, WEYL = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)  # of Philox4x32
LEVELS = 1 << 16


def threshold(p):
    """How many of the LEVELS numbers drop a weight: the probability p to 16 bits."""
    return round(p * LEVELS)


def rescale(p):
    """What the kept weights are multiplied by, so that a weight keeps its expectation."""
    return LEVELS / max(LEVELS - threshold(p), 1)
