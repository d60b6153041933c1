"""The kustomizations refer to what exists; needs no kubectl."""

import pytest
import yaml

from tests.deploy.manifests import KUBERAY, KUSTOMIZATIONS, load


def name_of(path):
    return path.parent.relative_to(KUBERAY).as_posix()


def objects(path):
    """The kinds and names that a kustomization or component brings along, its bases' and components' included."""
    [text] = load(path)
    found = set()
    for entry in [*text.get("resources", []), *text.get("components", [])]:
        target = path.parent / entry
        found |= (
            objects(target / "kustomization.yaml")
            if target.is_dir()
            else {(each["kind"], each["metadata"]["name"]) for each in load(target)}
        )
    return found


def users_of(component):
    """The kustomizations that include a component: it patches what they hold."""
    return [
        path for path in KUSTOMIZATIONS for entry in load(path)[0].get("components", [])
        if (path.parent / entry).resolve() == component.parent
    ]  # fmt: skip


@pytest.mark.parametrize("path", KUSTOMIZATIONS, ids=name_of)
def test_what_a_kustomization_names_exists_and_every_file_beside_it_is_named(path):
    [text] = load(path)
    named = [*text.get("resources", []), *text.get("components", [])]
    named += [patch["path"] for patch in text.get("patches", []) if "path" in patch]
    for entry in named:
        target = path.parent / entry
        assert (target / "kustomization.yaml").is_file() if target.is_dir() else target.is_file(), entry
    beside = {each.name for each in path.parent.iterdir() if each.is_file()} - {"kustomization.yaml"}
    assert beside == {entry for entry in named if "/" not in entry}


@pytest.mark.parametrize("path", KUSTOMIZATIONS, ids=name_of)
def test_patches_and_replacements_have_an_object_to_change(path):
    [text] = load(path)
    is_component = text["kind"] == "Component"
    holders = users_of(path) if is_component else [path]
    assert holders, "a component that nobody uses"
    wanted = [patch["target"] for patch in text.get("patches", [])]
    for replacement in text.get("replacements", []):
        wanted += [replacement["source"], *(target["select"] for target in replacement["targets"])]
    for holder in holders:
        there = objects(holder)
        for each in wanted:
            assert (each["kind"], each["name"]) in there, f"{name_of(holder)}: {each}"


@pytest.mark.parametrize("path", KUSTOMIZATIONS, ids=name_of)
def test_every_patched_path_exists_in_the_object_it_changes(path):
    """`replace` of a path that is not there is an error in kustomize; `add` needs the parent."""
    [text] = load(path)
    for patch in text.get("patches", []):
        operations = yaml.safe_load(patch["patch"] if "patch" in patch else (path.parent / patch["path"]).read_text())
        files = [each for each in KUBERAY.rglob("*.yaml") if each.name not in ("kustomization.yaml", "entrypoint.yaml")]
        [target] = [
            each for file in files for each in load(file)
            if isinstance(each, dict) and each["kind"] == patch["target"]["kind"]
        ]  # fmt: skip
        for operation in operations:
            *parents, last = operation["path"].strip("/").split("/")
            place = target
            for part in parents:
                place = place[int(part)] if part.isdigit() else place[part]
            if operation["op"] == "replace":
                assert (int(last) < len(place)) if last.isdigit() else last in place, operation["path"]
