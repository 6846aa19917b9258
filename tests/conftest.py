"What several test files use."
import os
from pathlib import Path

import pytest

if 'PYTEST_XDIST_WORKER' in os.environ: os.environ.setdefault('OMP_NUM_THREADS', '1') # one thread for each worker: more of them wait for each other


@pytest.fixture(scope='session')
def shared_data():
    "The folder of the real data, which never lie in the repository."
    folder = Path(os.environ.get('MCLS_DATA') or Path(__file__).resolve().parents[2]/'shared'/'data')
    if not folder.is_dir(): pytest.skip(f'{folder} is absent: real data is tested where MCLS_DATA names its folder.')
    return folder
