"""A quick check that a call is like one before it."""

from torch._C._dynamo.guards import TensorGuards


def guard(*tensors, free_sizes=(), free_strides=()):
    """A function of as many objects, none twice: whether they are tensors like these, in a thread like this one.

    Alike in class, dtype, device, requires_grad, sizes and strides, and in what the dispatcher would do with them: so
    there is no tracer, functional transform, dispatch mode or autocast, and inference mode is as it was. Sizes may
    differ where (number of the tensor, dimension) is in `free_sizes`, strides in the dimensions `free_strides`.
    Dynamo's own check, one call for all.
    """
    sizes = [[None if (i, d) in free_sizes else n for d, n in enumerate(t.shape)] for i, t in enumerate(tensors)]
    strides = [[None if d in free_strides else n for d, n in enumerate(t.stride())] for t in tensors]
    return TensorGuards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides).check
