"""Triton's interpreter without the greater part of its own cost: it patches `triton.language` again at each call of one
kernel function from another, hundreds of attributes each time. Here once for each launch, which gives the same."""

import inspect
from functools import cache

import triton.language as tl
from triton.runtime import interpreter


@cache
def quicken():
    """Changes the interpreter of this process, once. Triton 3.6's has no scopes of patches, and stays as it is."""
    if not hasattr(interpreter, "_LangPatchScope"):
        return
    patch, patched = interpreter._patch_lang, set()

    class Scope(interpreter._LangPatchScope):
        def restore(self):
            super().restore()
            patched.clear()

    def patch_once(fn):
        seen = {id(value) for value in fn.__globals__.values() if inspect.ismodule(value) and value in (tl, tl.core)}
        scope = Scope()
        if not seen or not seen <= patched:
            scope._changes = patch(fn)._changes
            patched.update(seen)
        return scope

    interpreter._patch_lang = patch_once
