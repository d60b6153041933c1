"""Reads YAML files left to right, then dotted overrides, and validates the result."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from yaml import YAMLError

from actors.errors import UserError
from orchestrator.config.catalog import Catalog
from orchestrator.config.credentials import redacted
from orchestrator.config.refusals import check, refuse_unknown, sentence
from orchestrator.config.sections import RunConfig

_NOT_OF_THE_RUN = (
    "run_dir", "placement", "checkpoint", "recovery", "evaluation", "faults", "on_nonfinite", "staleness", "buffers",
)  # fmt: skip


def load_config(files: Sequence[str | Path], overrides: Sequence[str], catalog: Catalog) -> RunConfig:
    """Return the one run that the files and overrides describe.

    Raises:
        UserError: a file can't be read, or a key or value is not what it must be.
    """
    return config_from_mapping(_merge(files, overrides), catalog)


def load_runs(files: Sequence[str | Path], overrides: Sequence[str], catalog: Catalog) -> list[RunConfig]:
    """Return one run per seed: `seed=[1,2,3]` describes three.

    Raises:
        UserError: as `load_config`.
    """
    raw = _merge(files, overrides)
    raw.setdefault("run_dir", f"runs/{'-'.join(Path(file).stem for file in files)}")
    return [config_from_mapping(run, catalog) for run in expand_seeds(raw)]


def expand_seeds(raw: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one mapping per seed, each with its own run directory below `run_dir`."""
    seeds = raw.get("seed", 0)
    if not isinstance(seeds, list):
        return [dict(raw)]
    if not seeds or len(set(map(str, seeds))) != len(seeds):
        raise UserError(f"seed: got {seeds}, expected different numbers; list every seed once")
    return [{**raw, "seed": seed, "run_dir": f"{raw.get('run_dir')}/seed-{seed}"} for seed in seeds]


def config_from_mapping(raw: Mapping[str, Any], catalog: Catalog) -> RunConfig:
    """Validate a mapping in the form of the YAML files.

    Raises:
        UserError: a key or value is not what it must be; names its dotted path.
    """
    refuse_unknown(RunConfig, raw)
    raw = _with_block_numbers(raw)
    try:
        config = RunConfig(**raw)
    except ValidationError as error:
        raise UserError(sentence(error)) from None
    check(config, catalog)
    return config


def changed(config: RunConfig, values: Mapping[str, Any], catalog: Catalog) -> RunConfig:
    """Return a config with other values at dotted keys.

    Raises:
        UserError: as `config_from_mapping`.
    """
    raw = plain_values(config)
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        place = raw
        for part in section.split("."):
            place = place.setdefault(part, {})
        place[name] = value
    return config_from_mapping(raw, catalog)


def resolved(config: RunConfig) -> dict[str, Any]:
    """Return plain values to be written down: they load back to an equal config, but credentials are redacted."""
    return redacted(plain_values(config))


def plain_values(config: RunConfig) -> dict[str, Any]:
    """Return plain values that load back to an equal config, credentials as they are."""
    plain = config.model_dump(mode="json", exclude_none=True)
    for section in plain.values():
        if isinstance(section, dict) and isinstance(section.get("options"), dict):
            section |= section.pop("options")
    return plain


def same_run(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the dotted keys in which two resolved configs describe different runs."""
    before, after = dict(_flat(old)), dict(_flat(new))
    differing = []
    for key in sorted(before.keys() | after.keys()):
        if key.split(".")[0] in _NOT_OF_THE_RUN or before.get(key) == after.get(key):
            continue
        if key == "training.epochs" and after.get(key, 0) > before.get(key, 0):
            continue
        if key == "network.cuts" and before.get("network.blocks") == "auto" and key not in after:
            continue  # the run's own, found when it began
        differing.append(key)
    return differing


def _merge(files: Sequence[str | Path], overrides: Sequence[str]) -> dict[str, Any]:
    merged = OmegaConf.create()
    for file in files:
        merged = OmegaConf.merge(merged, _read(Path(file)))
    for override in overrides:
        key, _, value = override.partition("=")
        if not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", key) or "=" not in override:
            raise UserError(
                f"{override!r}: expected key=value with a dotted key, such as training.epochs=5; correct it"
            )
        try:
            merged = OmegaConf.merge(merged, OmegaConf.from_dotlist([f"{key}={value}"]))
        except (OmegaConfBaseException, YAMLError, ValueError) as error:
            raise UserError(f"{key}: {value!r} can't be set ({_line(error)}); check key and value") from None
    try:
        plain = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"config: an interpolation can't be resolved ({_line(error)}); correct it") from None
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _read(path: Path) -> Any:
    try:
        loaded = OmegaConf.load(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such config file; shipped ones are under configs/") from None
    except (OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is None:  # OmegaConf's word for a number or a date
            raise _no_sections(path) from None
        raise UserError(f"{path}: can't be read ({_line(error)}); give a readable YAML file") from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{place}: not YAML ({getattr(error, 'problem', error)}); correct the file") from None
    if not OmegaConf.is_dict(loaded):
        raise _no_sections(path)
    return loaded


def _no_sections(path: Path) -> UserError:
    return UserError(f"{path}: holds a list or a scalar, expected sections such as `data:`; correct the file")


def _with_block_numbers(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Join `optimizer.blocks.0` of the command line, a string key, with the number 0 of a YAML file."""
    optimizer = raw.get("optimizer")
    blocks = optimizer.get("blocks") if isinstance(optimizer, Mapping) else None
    if not isinstance(optimizer, Mapping) or not isinstance(blocks, Mapping):
        return dict(raw)
    joined: dict[Any, Any] = {}
    for key, value in blocks.items():
        number = int(key) if str(key).isdigit() else key
        both = isinstance(value, Mapping) and isinstance(joined.get(number), Mapping)
        joined[number] = {**joined[number], **value} if both else value
    return {**raw, "optimizer": {**optimizer, "blocks": joined}}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
