"""A griffe extension that shows the executors' methods as callers meet them.

A method is assigned in the class, `set_linked_pod = _runs(operations.set_linked_pod)`: signature and docstring are the
builder's, see `podlink.store.options.described_by`. Reading the source alone, griffe takes it for an attribute.
"""

import inspect
from typing import Any

import griffe

from podlink.store.aio import executor as aio
from podlink.store.blocking import executor as blocking

_CLASSES = {
    f"{made.__module__}.{made.__qualname__}": made for made in (aio.StatefulExecutor, blocking.StatefulExecutor)
}


class Executors(griffe.Extension):
    """Puts a function in the place of each such attribute, and values in the place of defaults that have a name."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Called once the source of the whole package was read."""
        for path, runtime in _CLASSES.items():
            documented = pkg[path.removeprefix(f"{pkg.path}.")]
            for name, member in list(documented.members.items()):
                if isinstance(member, griffe.Attribute) and callable(getattr(runtime, name, None)):
                    documented[name] = _method(pkg, name, member, getattr(runtime, name))
                elif isinstance(member, griffe.Function) and not name.startswith("_"):
                    _show_defaults(member.parameters, inspect.signature(getattr(runtime, name)))
            _show_defaults(documented["__init__"].parameters, inspect.signature(runtime))


def _method(pkg: griffe.Module, name: str, attribute: griffe.Attribute, runtime: Any) -> griffe.Function:
    """The method that an attribute is at run time."""
    builder = _builder(pkg, name)
    this = griffe.Parameter("self", kind=griffe.ParameterKind.positional_only)
    method = griffe.Function(
        name,
        lineno=attribute.lineno,
        endlineno=attribute.endlineno,
        parameters=griffe.Parameters(this, *[_copy(parameter) for parameter in builder.parameters]),
        returns=_result(builder),
    )
    if (docstring := builder.docstring) is not None:
        method.docstring = griffe.Docstring(
            docstring.value, parent=method, parser=docstring.parser, parser_options=docstring.parser_options
        )
    if inspect.iscoroutinefunction(runtime):
        method.labels.add("async")
    _show_defaults(method.parameters, inspect.signature(runtime))
    return method


def _builder(pkg: griffe.Module, name: str) -> griffe.Function:
    found = pkg["store.operations"][name]
    if isinstance(found, griffe.Alias):
        found = pkg.modules_collection[found.target_path]
    if not isinstance(found, griffe.Function):
        raise TypeError(f"podlink.store.operations.{name} is no function")
    return found


def _result(builder: griffe.Function) -> str | griffe.Expr:
    """The result of `Operation[result]` or `Bulk[result]`."""
    if not isinstance(builder.returns, griffe.ExprSubscript):
        raise TypeError(f"{builder.path} returns {builder.returns}, which is no Operation[...] and no Bulk[...]")
    return builder.returns.slice


def _copy(parameter: griffe.Parameter) -> griffe.Parameter:
    return griffe.Parameter(
        parameter.name, annotation=parameter.annotation, kind=parameter.kind, default=parameter.default
    )


def _show_defaults(parameters: griffe.Parameters, signature: inspect.Signature) -> None:
    for parameter in parameters:
        known = signature.parameters.get(parameter.name)
        if known is not None and known.default is not inspect.Parameter.empty:
            parameter.default = repr(known.default)
