"""Which settings the next job of a run has, by what `control` has set and what its command gives."""

import pytest

from actors.errors import UserError
from orchestrator.catalog import find_catalog
from orchestrator.config import changed
from orchestrator.kept_changes import forget_overruled, keep_changes, with_changes
from orchestrator.run_directory import RunDirectory
from tests.runs import config_of

CATALOG = find_catalog()
GIVEN = {"staleness": {"max": 5}, "buffers": {"capacity": 6}}


def command(folder, **sections):
    return config_of(folder, **{**GIVEN, **sections})


def controlled(folder, config, **values):
    """Let `control` set values in a run; return its config from then on."""
    directory = RunDirectory.create(config)
    values = {key.replace("__", "."): value for key, value in values.items()}
    after = changed(config, values, CATALOG)
    keep_changes(directory, config, after, values)
    return after


def begun(folder, config):
    """Begin another job of the run; return what its settings are."""
    config = with_changes(config, CATALOG)[0]
    directory = RunDirectory.create(config)
    directory.keep(config)
    forget_overruled(directory, config)
    return config.staleness.max, config.buffers.capacity


def test_the_same_command_goes_on_with_what_control_has_set(tmp_path):
    controlled(tmp_path, command(tmp_path), staleness__max=2, buffers__capacity=4)
    config, words = with_changes(command(tmp_path), CATALOG)
    assert (config.staleness.max, config.buffers.capacity) == (2, 4)
    assert words == ["staleness.max=2", "buffers.capacity=4"]


def test_so_does_the_config_of_the_run_itself(tmp_path):
    after = controlled(tmp_path, command(tmp_path), staleness__max=None, buffers__capacity=4)
    held = RunDirectory.open(tmp_path).config(CATALOG)
    assert held == after and with_changes(held, CATALOG) == (held, [])


@pytest.mark.parametrize("given", [3, None])
def test_what_a_command_gives_anew_overrules_it_for_good(tmp_path, given):
    controlled(tmp_path, command(tmp_path), staleness__max=2, buffers__capacity=4)
    assert begun(tmp_path, command(tmp_path, staleness={"max": given})) == (given, 4)
    assert begun(tmp_path, command(tmp_path)) == (5, 4), "the first command gives something else than the last one"


def test_what_was_set_twice_is_compared_with_what_the_command_gave_at_first(tmp_path):
    after = controlled(tmp_path, command(tmp_path), staleness__max=2)
    controlled(tmp_path, after, staleness__max=1)
    assert begun(tmp_path, command(tmp_path)) == (1, 6)
    controlled(tmp_path, with_changes(command(tmp_path), CATALOG)[0], staleness__max=4)
    assert begun(tmp_path, command(tmp_path)) == (4, 6), "also in the job after"


def test_a_command_that_does_not_go_with_it_is_refused_with_what_control_has_set(tmp_path):
    controlled(tmp_path, command(tmp_path), buffers__capacity=3)
    with pytest.raises(UserError, match=r"buffers\.window: got 5.*control has set buffers\.capacity=3 in this run"):
        with_changes(command(tmp_path, buffers={"window": 5, "capacity": 6}), CATALOG)


@pytest.mark.parametrize("text", [None, "", "[", "{}"])
def test_without_a_record_the_command_is_what_holds(tmp_path, text):
    directory = RunDirectory.create(command(tmp_path))
    if text is not None:
        directory.changes_json.write_text(text)
    assert with_changes(command(tmp_path), CATALOG) == (command(tmp_path), [])


def test_a_fresh_run_forgets_it(tmp_path):
    controlled(tmp_path, command(tmp_path), staleness__max=2)
    RunDirectory.open(tmp_path).begin(command(tmp_path))
    assert with_changes(command(tmp_path), CATALOG) == (command(tmp_path), [])
