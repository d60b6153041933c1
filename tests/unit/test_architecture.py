"""What keeps the tree readable: short files, no grab-bags, Ray at its edge, no path of one machine."""

import re

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
    assert {user for user in users if not user.startswith("orchestrator/cluster/")} == {"actors/transport/ray_pull.py"}
    assert "orchestrator/cluster/ray_cluster.py" in users, "the search finds imports"


def test_nothing_is_ever_unpickled():
    modules, calls = r"import (dill|cloudpickle|marshal|shelve)", r"(torch|np|yaml)\.(unsafe_)?load\("
    reads = rf"\bpickle\.(loads?|Unpickler)\b|{modules}|\b{calls}"
    users = [path for path in PACKAGES if re.search(reads, path.read_text())]
    assert users == []


def test_every_package_module_says_what_it_is():
    silent = [path for path in PACKAGES if not path.read_text().lstrip().startswith('"""')]
    assert silent == []
