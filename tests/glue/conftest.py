from pathlib import Path

import pytest

from tests.glue import made_glue


@pytest.fixture(scope="session")
def glue_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All tasks in the original form, with a few rows each."""
    return made_glue.write(tmp_path_factory.mktemp("glue"))
