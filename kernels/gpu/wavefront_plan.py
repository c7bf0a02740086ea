"""Whether layers run as a wavefront on a GPU, and in which chunks of time: a pure function. Not measured on one yet.

Reckoned with 2 microseconds a step and 10 a launch, of which a chunk has a few in each layer. With K chunks L layers
take the time of K + L - 1 chunks of one layer, and not of L K.
"""

SHORTEST, MOST = 64, 16  # steps of a chunk, so that launches are a small part; chunks, which is enough
MULTIPLE = 16  # of steps: a launch from another step would be compiled anew


def chunk_for(plan, L, D, T, B, H, processors):
    """Steps a chunk of L layers of D directions that each run with this `regimes.Plan`; 0 where they have to, or might
    as well, run one after another.

    The second direction of a layer needs all of the one below; a launch a step leaves nothing to hide; and programs
    that find no processor wait for those of the layer that is to run beside them.
    """
    groups, row_groups = plan.blocks(H, B)
    chunks = min(MOST, T // SHORTEST)
    apart = D > 1 or plan.regime == "stepwise" or L * groups * row_groups > processors
    return 0 if L == 1 or apart or chunks < 2 else -(-T // (chunks * MULTIPLE)) * MULTIPLE
