"""Roles of docstrings become links in the reference: ``:class:`Name```, ``:func:`module.name```."""

import re
from collections.abc import Iterator
from typing import Any

import griffe

ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod|obj):`(~?)([\w.]+)`")


class Roles(griffe.Extension):
    """Rewrites the roles of a package's docstrings as references that mkdocs-autorefs links."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **_: Any) -> None:
        """Rewrite all docstrings of a package; griffe calls this method."""
        for one in _objects(pkg):
            docstring = one.docstring
            if docstring is not None:
                docstring.value = ROLE.sub(
                    lambda m, one=one: _link(one, m, loader), docstring.value
                )


def _objects(of: griffe.Object) -> Iterator[griffe.Object]:
    """An object and all that is defined in it."""
    yield of
    for member in of.members.values():
        if isinstance(member, griffe.Object):
            yield from _objects(member)


def _link(where: griffe.Object, role: re.Match[str], loader: griffe.GriffeLoader) -> str:
    """The reference, or the name as code where nothing has this name."""
    name = role[2]
    shown = f"`{name.rpartition('.')[2] if role[1] else name}`"
    path = _path(where, name, loader)
    return f'<autoref optional identifier="{path}">{shown}</autoref>' if path else shown


def _path(where: griffe.Object, name: str, loader: griffe.GriffeLoader) -> str | None:
    """The full name of the object that a docstring calls ``name``."""
    first, *rest = name.split(".")
    scope: griffe.Object | None = where
    while scope is not None:
        members = scope.all_members if scope.is_class or scope.is_module else {}
        if first in members:
            return _canonical([members[first].path, *rest], loader)
        scope = scope.parent
    return _canonical([first, *rest], loader) if first == where.package.name else None


def _canonical(parts: list[str], loader: griffe.GriffeLoader) -> str | None:
    """The name under which the reference shows an object that others import."""
    try:
        target = loader.modules_collection[".".join(parts)]
        return target.canonical_path
    except (KeyError, griffe.AliasResolutionError, griffe.CyclicAliasError):
        return None
