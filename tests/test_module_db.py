"""torch's own module inputs, `module_db`, run against these classes: results, gradients, gradcheck, state dicts."""

import copy

import pytest
import torch
from torch.testing._internal.common_modules import module_db
from torch.utils._pytree import tree_leaves, tree_map

from seqkernels import nn

NAMES = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell", "MultiheadAttention")
OWN = [info for info in module_db if info.module_cls.__module__.startswith("torch.nn.")]
INFOS = [info for info in OWN if info.module_cls.__name__ in NAMES]


def samples(info, dtype, requires_grad):
    """(our module, torch's, arguments, keywords) for each of torch's samples, in training and in evaluation mode."""
    for training in (True, False):
        inputs = info.module_inputs_func(
            info, device="cpu", dtype=dtype, requires_grad=requires_grad, training=training
        )
        for sample in inputs:
            constructor, forward = sample.constructor_input, sample.forward_input
            keywords = {"device": "cpu", "dtype": dtype, **constructor.kwargs}
            theirs = info.module_cls(*constructor.args, **keywords).train(training)
            ours = getattr(nn, info.module_cls.__name__)(*constructor.args, **keywords).train(training)
            ours.load_state_dict(copy.deepcopy(theirs.state_dict()), strict=True)
            yield ours, theirs, forward.args, forward.kwargs


def tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def data(out):
    """The tensors of an output, those of a PackedSequence included."""
    return tensors([tuple(part) if isinstance(part, torch.nn.utils.rnn.PackedSequence) else part for part in out])


def run(module, args, kwargs):
    torch.manual_seed(1)
    out = module(*args, **kwargs)
    return data(out if isinstance(out, tuple) else (out,))


def test_all_seven_are_in_torchs_list():
    assert sorted({info.module_cls.__name__ for info in INFOS}) == sorted(NAMES)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("info", INFOS, ids=lambda i: i.formatted_name)
def test_forward_and_gradients(info, dtype):
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-11}
    count = 0
    for ours, theirs, args, kwargs in samples(info, dtype, True):
        results = []
        for module in (ours, theirs):
            out = run(module, args, kwargs)
            wanted = [t for t in [*tensors((args, kwargs)), *module.parameters()] if t.requires_grad]
            loss = sum(t.sin().sum() for t in out if t.requires_grad)
            results.append((out, torch.autograd.grad(loss, wanted, allow_unused=True)))
        torch.testing.assert_close(*results, **tolerance, equal_nan=True)
        with torch.no_grad():
            torch.testing.assert_close(run(ours, args, kwargs), results[1][0], **tolerance, equal_nan=True)
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        assert repr(ours) == repr(theirs)
        count += 1
    assert count


@pytest.mark.parametrize("info", INFOS, ids=lambda i: i.formatted_name)
def test_gradcheck(info):
    """As torch's own test: by the parameters and by the inputs, in float64; a few samples of each kind of call."""
    seen = set()
    for ours, _, args, kwargs in samples(info, torch.float64, True):
        kind = (str(ours), len(tensors(args)), tuple(t.dim() for t in tensors(args)), tuple(kwargs))
        if kind in seen or ours.training and getattr(ours, "dropout", 0):
            continue
        seen.add(kind)
        names = [name for name, _ in ours.named_parameters()]
        inputs = [t for t in tensors((args, kwargs)) if t.requires_grad]

        def function(*values, ours=ours, args=args, kwargs=kwargs, names=names, inputs=inputs):
            replaced = {id(old): new for old, new in zip(inputs, values)}
            own = tree_map(lambda leaf: replaced.get(id(leaf), leaf), (args, kwargs))
            parameters = dict(zip(names, values[len(inputs) :]))
            out = torch.func.functional_call(ours, parameters, *own)
            return tuple(t for t in data(out if isinstance(out, tuple) else (out,)) if t.requires_grad)

        values = [t.detach().clone().requires_grad_() for t in (*inputs, *ours.parameters())]
        torch.autograd.gradcheck(function, values, fast_mode=True)
    assert seen
