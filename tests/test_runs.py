"""The experiment notebooks as a user runs them: through papermill, in a folder of their own."""
import subprocess, sys
from pathlib import Path

import pandas as pd
import papermill
import pytest

ROOT = Path(__file__).resolve().parents[1]

def run(notebook, tmp_path, **parameters):
    "Execute a notebook; returns the executed copy's text outputs."
    book = papermill.execute_notebook(ROOT/'nbs'/f'{notebook}.ipynb', tmp_path/f'{notebook}.ipynb', dict(out=str(tmp_path/'runs'), **parameters), kernel_name='python3', progress_bar=False)
    return book

def written(tmp_path): return {p.name for p in (tmp_path/'runs').rglob('*') if p.is_file()}

@pytest.mark.slow
@pytest.mark.parametrize('row', ['VDF', 'MT'])
def test_run_vdf(tmp_path, row):
    run('run_vdf', tmp_path, preset='tiny', row=row, smoke=True)
    files = written(tmp_path)
    assert {'rows.csv', 'summaries.csv', 'best.safetensors', 'last.safetensors', 'history.csv', 'curves.json', 'attention.json'} <= files
    assert ({'video.json', 'gate.json'} <= files) == (row == 'VDF')
    table = pd.read_csv(next((tmp_path/'runs').rglob('rows.csv')))
    assert set(table.row) == {row} and table.query('metric == "rougeL"').value.between(0, 100).all()
    assert (tmp_path/'run_vdf.ipynb').stat().st_size < 1_000_000

def test_an_unknown_parameter_is_refused(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="did you mean 'epochs'"): run('run_vdf', tmp_path, preset='tiny', epoch=1, smoke=True)
    assert not written(tmp_path)

@pytest.mark.slow
def test_same_seed_same_summaries_in_another_process(tmp_path):
    code = 'import sys; from mcls_nb.experiments import Job, run_job; run_job(Job("VDF", "tiny", seed=3, epochs=3), sys.argv[1])'
    for name in 'ab': subprocess.run([sys.executable, '-c', code, tmp_path/name], check=True, capture_output=True)
    for file in ('summaries.csv', 'rows.csv', 'history.csv', 'best.safetensors'):
        a, b = (next((tmp_path/name).rglob(file)) for name in 'ab')
        if file == 'history.csv': # everything but the clock
            a, b = (pd.read_csv(p).query('not metric.str.contains("per_second|steps/s")', engine='python') for p in (a, b))
            pd.testing.assert_frame_equal(a, b)
        elif file != 'best.safetensors': assert a.read_bytes() == b.read_bytes()
    other = subprocess.run([sys.executable, '-c', code.replace('seed=3', 'seed=4'), tmp_path/'c'], check=True, capture_output=True)
    assert next((tmp_path/'c').rglob('summaries.csv')).read_bytes() != next((tmp_path/'a').rglob('summaries.csv')).read_bytes()

@pytest.mark.slow
def test_real_records_train(tmp_path, shared_data):
    run('run_vdf', tmp_path, preset='tiny', data=str(shared_data/'how2_mcls_demo'), epochs=2)
    assert len(pd.read_csv(next((tmp_path/'runs').rglob('summaries.csv')))) == 2
