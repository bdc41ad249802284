"""The configuration: one typed schema, read from YAML files and `key=value` overrides."""

from res2net_dense.config.load import (
    config_to_dict,
    is_saved_config,
    load_config,
    parse_config,
    save_config,
)
from res2net_dense.config.schema import Config

__all__ = ["Config", "config_to_dict", "is_saved_config", "load_config", "parse_config", "save_config"]
