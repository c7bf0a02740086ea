"""Lets TorchDynamo trace this package's recurrent modules, and those alone.

Dynamo refuses every instance of torch.nn.RNN, LSTM and GRU, subclasses included, unless
torch._dynamo.config.allow_rnn is set, because it would unroll torch's operators over time. These modules become one
operator a layer, so that there is nothing to refuse. The flag is raised only while Dynamo wraps one of them: torch's
own modules are refused as before, and the user's setting stays what it was. Importing Dynamo takes a second, so the
rule is put in place when someone else imports it.
"""

import functools
import importlib.abc
import importlib.machinery
import sys

_BUILDER = "torch._dynamo.variables.builder"
_served = []


def traceable(cls):
    """Class decorator: Dynamo may trace instances of `cls`."""
    _served.append(cls)
    return cls


def _install(builder):
    wrap_module = builder.VariableBuilder.wrap_module

    @functools.wraps(wrap_module)
    def wrap(self, value):
        if not isinstance(value, tuple(_served)):
            return wrap_module(self, value)
        with builder.config.patch(allow_rnn=True):
            return wrap_module(self, value)

    builder.VariableBuilder.wrap_module = wrap


class _AfterBuilder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds Dynamo's builder once, as the ordinary path finder would, and installs the rule when it has been
    executed."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != _BUILDER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None:
            self._loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _install(module)


if _BUILDER in sys.modules:
    _install(sys.modules[_BUILDER])
else:
    sys.meta_path.insert(0, _AfterBuilder())
