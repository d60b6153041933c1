"""What keeps the tree readable: short files, no grab-bags, Ray at its edge, no path of one machine."""

import ast
import re

from actors.plugins import plugin_names
from tests.conftest import ROOT

SOURCES = [path for folder in ("actors", "orchestrator", "tests") for path in (ROOT / folder).rglob("*.py")]
PACKAGES = [path for path in SOURCES if "tests" not in path.relative_to(ROOT).parts]


def test_no_file_is_longer_than_400_lines():
    long = {
        str(path.relative_to(ROOT)): count for path in SOURCES if (count := len(path.read_text().splitlines())) > 400
    }
    assert long == {}


def test_no_module_is_a_grab_bag():
    banned = {"utils", "helpers", "common", "manager", "engine", "service", "misc"}
    assert [path for path in SOURCES if path.stem in banned] == []


def test_ray_is_imported_at_its_edges_only():
    users = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGES
        if re.search(r"^\s*(import|from) ray\b", path.read_text(), re.M)
    }
    assert {user for user in users if not user.startswith("orchestrator/cluster/")} == {
        "actors/transport/direct.py",
        "actors/transport/ray_pull.py",
    }
    assert "orchestrator/cluster/ray_cluster.py" in users, "the search finds imports"


def test_nothing_is_ever_unpickled():
    modules, calls = r"import (dill|cloudpickle|marshal|shelve)", r"(torch|np|yaml)\.(unsafe_)?load\("
    reads = rf"\bpickle\.(loads?|Unpickler)\b|{modules}|\b{calls}"
    users = [path for path in PACKAGES if re.search(reads, path.read_text())]
    assert users == []


def test_every_package_module_says_what_it_is():
    silent = [path for path in PACKAGES if not path.read_text().lstrip().startswith('"""')]
    assert silent == []


def asked(tree):
    """Yield the lines at which a plug-in's name decides something: it is compared, matched, or looked up by."""
    names = {*plugin_names("rule"), *plugin_names("objective")} - {"local"}  # which is a mode of recovery, too
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.Match):
            parts = [node.subject, *(part.value for part in ast.walk(node) if isinstance(part, ast.MatchValue))]
        else:
            parts = [node.slice] if isinstance(node, ast.Subscript) else []
        if any(is_name_of_plugin(part, names) for part in parts):
            yield node.lineno


def is_name_of_plugin(node, names):
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return any(is_name_of_plugin(element, names) for element in node.elts)
    if isinstance(node, ast.Constant):
        return node.value in names
    return isinstance(node, ast.Attribute) and re.search(r"\b(rule|objective)(_spec)?\.name$", ast.unparse(node))


def test_nothing_outside_the_plugins_asks_for_a_plugins_name():
    """The system works with what a rule and an objective declare, so that any file dropped in is as good as ours."""
    outside = [path for path in PACKAGES if path.parent.name not in ("rules", "objectives")]
    found = {path.relative_to(ROOT).as_posix(): [*asked(ast.parse(path.read_text()))] for path in outside}
    assert {path: lines for path, lines in found.items() if lines} == {}
    planted = "if config.rule.name == x: pass\nif y in ('a', 'drtp'): pass\nz = table[rule.name]\nv = rule.name"
    assert [*asked(ast.parse(planted))] == [1, 2, 3], "the search finds them"
