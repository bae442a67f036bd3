"""`policy.yaml` read back and checked. Imports nothing heavy."""

from __future__ import annotations

import yaml

from orchestrator.config import PolicyFile
from orchestrator.config.sweep import validate
from orchestrator.config.yaml import read_yaml
from orchestrator.errors import ConfigError
from orchestrator.store.filesystem import Storage


def load_policy(file: str) -> PolicyFile:
    """Read `policy.yaml`.

    Raises:
        ConfigError: the file is absent, is not YAML, or says something else; the message names file and key.
    """
    try:
        folder, _, name = file.rpartition("/")
        tree = read_yaml(Storage(folder or ".").read(name).decode("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)[:200]
        raise ConfigError(f"policy {file!r} cannot be read: {reason}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"policy {file!r} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"policy {file!r}: expected a mapping with `fixed` rules, found {type(tree).__name__}")
    return validate(PolicyFile, tree, file)
