from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file


ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("file", sorted((ROOT / "accelerate_configs").glob("*.yaml")), ids=lambda f: f.stem)
def test_accelerate_configs_load(file):
    loaded = load_config_from_file(str(file))
    assert loaded.num_processes >= 1
