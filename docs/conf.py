"""How Sphinx makes the site: docs/build runs it."""

from __future__ import annotations

import pkgutil
import re
import sys
from types import FunctionType
from typing import Any, Final, TypeVar, get_type_hints

from docutils.nodes import Element
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.typing import stringify_annotation

import hvsock
from hvsock import aio

project: Final = "hvsock"
release: Final = hvsock.__version__
author: Final = "The hvsock authors"
project_copyright: Final = author

extensions: Final = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns: Final = ["conf.py", "build", "_static"]

# Docstrings name things in single backticks: what is documented here becomes a link.
default_role: Final = "py:obj"
add_module_names: Final = False
autodoc_member_order: Final = "bysource"
autodoc_typehints_format: Final = "short"
autodoc_preserve_defaults: Final = True
autodoc_type_aliases: Final = {"Address": "Address"}
python_use_unqualified_type_names: Final = True
napoleon_google_docstring: Final = True
napoleon_numpy_docstring: Final = False
napoleon_attr_annotations: Final = False  # they would name private modules

myst_heading_anchors: Final = 3
copybutton_exclude: Final = ".linenos, .gp"

html_theme: Final = "furo"
html_static_path: Final = ["_static"]
html_css_files: Final = ["tables.css"]
html_title: Final = f"hvsock {release}"
html_copy_source: Final = False
html_show_sphinx: Final = False

# A private name in a signature: of a constant, a type variable, or the TypedDict of **kwargs.
PRIVATE: Final = re.compile(
    r"(?P<kwargs>\*\*\w+: ~typing\.Unpack\[)?(?<![\w.~])(?:~[\w.]+\.)?(?P<name>_[A-Za-z]\w*)(?(kwargs)\])"
)
NOT_CALLED: Final = {"hvsock.aio.MessageServer", "hvsock.aio.Server"}
TAKES_OPTIONS: Final = {
    "hvsock.aio.open_connection": aio.create_connection,
    "hvsock.aio.start_server": aio.create_server,
}


def find_in_package(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: Element) -> Element | None:
    """Look a name up that a docstring of a submodule takes from the package itself."""
    if node.get("refdomain") != "py":
        return None
    domain = env.get_domain("py")
    name = f"{project}.{node['reftarget']}"
    return domain.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], name, node, content)


def order_by_source() -> None:
    """Have the members of a class stand in the order of the module that defines it, with what is said below them.

    A public class says that it is of the package that exports it, and autodoc reads that one's source. The integrations
    have no page of their own, and need their libraries to be imported.
    """
    for module in pkgutil.walk_packages(hvsock.__path__, f"{project}."):
        package, private, _ = module.name.partition("._")
        if private and module.name != "hvsock._hvsock" and package != "hvsock.integrations":
            exported, defining = ModuleAnalyzer.for_module(package), ModuleAnalyzer.for_module(module.name)
            exported.analyze()
            defining.analyze()
            # for_module() gives autodoc the same object.
            exported.tagorder |= defining.tagorder
            exported.attr_docs |= defining.attr_docs


def options_of(kwargs: Any, taker: FunctionType) -> str:
    """Return the options of a TypedDict as parameters, with the defaults of the function that takes them."""
    defaults = taker.__kwdefaults__
    types = {name: stringify_annotation(hint, "smart") for name, hint in get_type_hints(kwargs).items()}
    return ", ".join(f"{name}: {hint} = {defaults[name]!r}" for name, hint in types.items())


def show_public_signature(
    app: Sphinx, what: str, name: str, obj: Any, options: object, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Replace private names in a signature by what they mean; leave out the arguments of classes made by functions."""
    if name in NOT_CALLED:
        return "", None
    module = sys.modules.get(getattr(obj, "__globals__", {}).get("__name__", ""))
    taker = TAKES_OPTIONS.get(name)

    def meaning(match: re.Match[str]) -> str:
        value = getattr(module, match["name"])
        if match["kwargs"]:
            assert taker is not None, f"{name} passes its options to a function that is not in TAKES_OPTIONS"
            return options_of(value, taker)
        return stringify_annotation(value.__bound__, "smart") if isinstance(value, TypeVar) else repr(value)

    def public(text: str | None) -> str | None:
        return None if text is None else PRIVATE.sub(meaning, text)

    return public(signature), public(returns)


def name_files_of_the_clone(app: Sphinx, docname: str, source: list[str]) -> None:
    """Name a page that is not in docs/ where it is linked to: the site does not have it."""
    source[0] = re.sub(r"\[([^]]+)\]\(\.\./\.\./([\w/]+\.md)[^)]*\)", r"\1 (`\2`)", source[0])


def setup(app: Sphinx) -> None:
    """Register the above."""
    order_by_source()
    app.connect("source-read", name_files_of_the_clone)
    app.connect("missing-reference", find_in_package)
    app.connect("autodoc-process-signature", show_public_signature)
