"""What the layers contract cannot say: methods know no other methods, names match on nothing."""

import ast
from pathlib import Path

import pytest

from fewstep.data.catalogue import CATALOGUE

SOURCE = Path(__file__).parents[1] / "src" / "fewstep"
METHODS = [p for p in (SOURCE / "objectives").glob("*.py") if p.stem not in {"__init__", "base"}]
RECIPES = [p for p in (SOURCE / "recipes" / "methods").glob("*.py") if p.stem != "__init__"]


def imports(file: Path) -> set[str]:
    """The modules that a file imports anywhere."""
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    found = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return found | {a.name for node in nodes if isinstance(node, ast.Import) for a in node.names}


@pytest.mark.parametrize("file", METHODS, ids=lambda p: p.stem)
def test_methods_import_no_method(file):
    own = {m for m in imports(file) if m.startswith("fewstep.objectives.")}
    assert {m.split(".")[2] for m in own} <= {"base", "shared"}


@pytest.mark.parametrize("file", RECIPES, ids=lambda p: p.stem)
def test_recipe_files_import_no_other(file):
    assert not any(m.startswith("fewstep.recipes.methods") for m in imports(file))
    assert len(METHODS) >= 24


@pytest.mark.parametrize("folder", ["recipes", "compare", "evaluation"])
def test_no_function_matches_on_a_data_sets_name(folder):
    for file in (SOURCE / folder).glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                values = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]
                named = {v for v in values if isinstance(v, str)} & CATALOGUE.keys()
                # Keys of places are no data sets, though one has a data set's name.
                assert not named or "keys" in ast.unparse(node), (file.name, ast.unparse(node))


def test_recipes_are_typed():
    text = "".join(p.read_text(encoding="utf-8") for p in (SOURCE / "recipes").rglob("*.py"))
    assert text.count("Any") < 15
    assert "inspect.Signature" not in text
    assert "__signature__" not in text
