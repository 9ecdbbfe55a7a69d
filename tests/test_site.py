"""The documentation as it is built: formulas, links of roles, and no need of a network."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

pytest.importorskip("mkdocs")
pytest.importorskip("mkdocstrings")
pytest.importorskip("latex2mathml")

ROOT = Path(__file__).parents[1]


def hook(name: str) -> ModuleType:
    """A module of docs/hooks."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "hooks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The pages of the built site by path."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(out)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (out / "hooks").exists()
    assert (out / "styles" / "phones.css").exists()
    return {str(p.relative_to(out)): p.read_text() for p in out.rglob("*.html")}


def prose(page: str) -> str:
    """The text of a page without code."""
    kept = re.sub(r"<(code|pre|script|style)\b.*?</\1>", "<code>", page, flags=re.DOTALL)
    return re.sub("<(?!code>)[^>]*>", "", kept)


def test_no_formula_is_raw(site):
    for name, page in site.items():
        raw = re.findall(r".{0,40}(?:\$|\\[(\[a-zA-Z]).{0,40}", prose(page))
        assert raw == [], name
        assert "arithmatex" not in page, name


def test_formulas_are_mathml(site):
    for name in ("architecture", "coming-from", "doctor", "reference"):
        assert "<math " in site[f"{name}/index.html"], name
    page = site["architecture/index.html"]
    assert '<div class="formula"><math ' in page
    assert '<span class="formula"><math ' in page
    assert "<mi>transport</mi>" in page


def test_roles_are_links(site):
    for name, page in site.items():
        assert re.findall(r".{0,40}:[a-z]+:<code>.{0,20}", prose(page)) == [], name
    page = site["reference/index.html"]
    for target in ("paths.Trig", "models.preconditioning.ConsistencyBoundary", "compare.plan.Plan"):
        assert f'id="fewstep.{target}"' in page
    link = (
        r'<a class="autorefs autorefs-internal"[^>]*href="#fewstep\.paths\.Trig"><code>Trig</code>'
    )
    assert re.search(link, page)
    # A role that finds no target keeps its text in a span.
    assert re.findall(r"<span title=[^>]*><code>([^<]*)</code></span>", page) == []


def test_pages_need_no_network(site):
    for name, page in site.items():
        assert re.findall(r'<(?:script|img|iframe)[^>]* src="(?:https?:)?//[^"]*"', page) == [], (
            name
        )
        assert re.findall(r'<link[^>]* rel="stylesheet"[^>]*//', page) == [], name


def test_pages_know_phones(site):
    for name, page in site.items():
        assert '<meta name="viewport" content="width=device-width' in page, name


def test_a_wrong_formula_ends_the_build():
    from mkdocs.exceptions import PluginError

    page = SimpleNamespace(file=SimpleNamespace(src_uri="page.md"))
    with pytest.raises(PluginError, match=r"page\.md: cannot convert the formula \\frac"):
        hook("mathml").on_page_content(r'<span class="arithmatex">\(\frac\)</span>', page=page)


@pytest.mark.parametrize(
    ("html", "parts"),
    [
        (
            r'<span class="arithmatex">\(a &lt; b\)</span>',
            ["<mi>a</mi><mo>&#x0003C;</mo>", "inline"],
        ),
        (r'<div class="arithmatex">\[x\]</div>', ['<div class="formula">', 'display="block"']),
        ("<p>no formula: $5</p>", ["<p>no formula: $5</p>"]),
    ],
)
def test_a_formula(html, parts):
    page = SimpleNamespace(file=SimpleNamespace(src_uri="page.md"))
    made = hook("mathml").on_page_content(html, page=page)
    assert all(part in made for part in parts), made


def test_a_role_is_read_where_it_stands(tmp_path):
    import griffe

    package = tmp_path / "made"
    package.mkdir()
    (package / "__init__.py").write_text('"""See :class:`One`."""\nfrom made.inner import One\n')
    (package / "inner.py").write_text(
        "class Base:\n"
        "    def first(self): ...\n"
        "class One(Base):\n"
        '    """Reads :meth:`first`, :func:`~made.inner.two`, :func:`no` and :meth:`One.own`."""\n'
        "    def own(self):\n"
        '        """As :meth:`first`, see :func:`two` and ``:class:``."""\n'
        "def two(): ...\n"
    )
    extensions = griffe.load_extensions(hook("roles").Roles())
    loader = griffe.GriffeLoader(search_paths=[tmp_path], extensions=extensions)
    made = loader.load("made")

    def link(path: str, text: str) -> str:
        return f'<autoref optional identifier="{path}">`{text}`</autoref>'

    assert made.docstring.value == f"See {link('made.inner.One', 'One')}."
    first = link("made.inner.Base.first", "first")
    two, own = link("made.inner.two", "two"), link("made.inner.One.own", "One.own")
    assert made["inner.One"].docstring.value == f"Reads {first}, {two}, `no` and {own}."
    assert made["inner.One.own"].docstring.value == f"As {first}, see {two} and ``:class:``."
