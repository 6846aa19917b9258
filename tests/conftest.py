"What several test files use."
import os, subprocess, sys, time
from pathlib import Path

import pytest

if 'PYTEST_XDIST_WORKER' in os.environ: # one thread for each worker: more wait for each other
    os.environ.setdefault('OMP_NUM_THREADS', '1')


@pytest.fixture(scope='session')
def shared_data():
    "The folder of the real data, which never lie in the repository."
    beside = Path(__file__).resolve().parents[2]/'shared'/'data'
    folder = Path(os.environ.get('MCLS_DATA') or beside)
    if not folder.is_dir():
        pytest.skip(f'{folder} is absent: real data is tested where MCLS_DATA names its folder.')
    return folder


@pytest.fixture
def undisturbed(tmp_path):
    """A check: code that writes into a folder is killed again and again.

    In the end it has written, byte for byte, what it writes in peace."""
    def compare(code, blows, files):
        "`blows`: (pattern, number) of files there when one falls; `files`: what is compared."
        def command(name): return [sys.executable, '-c', code, tmp_path/name]
        def there(pattern): return len(list((tmp_path/'b').glob(pattern)))
        quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        subprocess.run(command('a'), check=True, capture_output=True)
        for pattern, number in blows:
            p = subprocess.Popen(command('b'), **quiet)
            while p.poll() is None and there(pattern) < number: time.sleep(.01)
            p.kill()
            p.wait()
        subprocess.run(command('b'), check=True, capture_output=True)
        for pattern in files:
            a, b = (next((tmp_path/name).glob(pattern)) for name in 'ab')
            assert a.read_bytes() == b.read_bytes()
    return compare
