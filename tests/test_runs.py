"""The experiment notebooks as a user runs them: through papermill, in a folder of their own."""
import json, subprocess, sys, time
from pathlib import Path

import pandas as pd
import papermill
import psutil
import pytest

from mcls_nb.core import DataError
from mcls_nb.papers.scores import TIDY
from mcls_nb.papers.low_resource import sample_sizes
from mcls_nb.summarize.rows import size_jobs

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
    code = 'import sys; from mcls_nb.summarize.rows import SummaryJob, run_job; run_job(SummaryJob("VDF", "tiny", seed=3, epochs=3), sys.argv[1])'
    for name in 'ab': subprocess.run([sys.executable, '-c', code, tmp_path/name], check=True, capture_output=True)
    for file in ('summaries.csv', 'rows.csv', 'history.csv', 'best.safetensors'):
        a, b = (next((tmp_path/name).rglob(file)) for name in 'ab')
        if file == 'history.csv': # everything but the clock
            a, b = (pd.read_csv(p).query('not metric.str.contains("per_second|steps/s")', engine='python') for p in (a, b))
            pd.testing.assert_frame_equal(a, b)
        elif file != 'best.safetensors': assert a.read_bytes() == b.read_bytes()
    subprocess.run([sys.executable, '-c', code.replace('seed=3', 'seed=4'), tmp_path/'c'], check=True, capture_output=True)
    assert next((tmp_path/'c').rglob('summaries.csv')).read_bytes() != next((tmp_path/'a').rglob('summaries.csv')).read_bytes()

@pytest.mark.slow
def test_real_records_train(tmp_path, shared_data):
    run('run_vdf', tmp_path, preset='tiny', data=str(shared_data/'how2_mcls_demo'), epochs=2)
    assert len(pd.read_csv(next((tmp_path/'runs').rglob('summaries.csv')))) == 2

SMALL = dict(preset='tiny', smoke=True, systems='VDF-TS-E, VDF', references='VDF', sizes='4, 16', seeds=1, jobs=1)

def finished(folder): return {p.relative_to(folder): p.stat().st_mtime_ns for p in folder.rglob('rows.csv')}

@pytest.fixture(scope='module')
def low_resource(tmp_path_factory):
    "The folder of a sweep that nothing disturbs."
    folder = tmp_path_factory.mktemp('low_resource')
    run('run_low_resource', folder, **SMALL)
    return folder

@pytest.mark.slow
def test_run_low_resource(low_resource):
    "Files, columns and answers; the second time nothing is run again."
    folder = low_resource/'runs'
    rows = pd.read_csv(folder/'low-resource-tiny.csv')
    assert tuple(rows.columns) == TIDY and set(rows.row) == {'VDF-TS-E', 'VDF-TS-E @4', 'VDF', 'VDF @4'}
    assert {'rougeL', 'bleu4', 'cider', 'slots'} <= set(rows.metric) and 'meteor' not in set(rows.metric)
    table = pd.read_csv(folder/'low-resource-tiny-table.csv')
    assert list(table.columns) == ['system', 'samples', 'seeds', 'value', 'low', 'high']
    assert list(zip(table.system, table.samples)) == [('VDF-TS-E', 4), ('VDF-TS-E', 16), ('VDF', 4), ('VDF', 16)]
    answers = pd.read_csv(folder/'low-resource-tiny-enough.csv')
    assert list(zip(answers.system, answers.reference)) == [('VDF-TS-E', 'VDF')] * 2 and answers.surely.isna().all() # one seed is never sure
    figure = json.loads((folder/'low-resource-tiny-figure.json').read_text())
    assert [t['name'] for t in figure['data']] == ['VDF-TS-E', 'VDF', 'VDF, all samples']
    before = finished(folder)
    run('run_low_resource', low_resource, **SMALL)
    assert len(before) == 4 and before == finished(folder)

@pytest.mark.slow
def test_run_low_resource_killed_and_started_again(low_resource, tmp_path):
    "SIGKILL for papermill, its kernel and the kernel's workers, twice; then the same table, and no finished run is run again."
    folder, parameters = tmp_path/'runs', dict(SMALL, out=tmp_path/'runs', jobs=2)
    command = [sys.executable, '-m', 'papermill', 'nbs/run_low_resource.ipynb', tmp_path/'run.ipynb', *sum((['-p', k, v] for k, v in parameters.items()), [])]
    for done in (0, 2): # finished runs that the blow waits for
        before = finished(folder)
        p = subprocess.Popen(list(map(str, command)), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        while p.poll() is None and (len(finished(folder)) < done or not list(folder.glob('.locks/*'))): time.sleep(.01)
        assert p.poll() is None
        for one in [*psutil.Process(p.pid).children(recursive=True), p]: one.kill()
        p.wait()
    kept = finished(folder)
    assert before.items() <= kept.items() and 2 <= len(kept) < 4
    run('run_low_resource', tmp_path, **SMALL)
    for name in ('low-resource-tiny.csv', 'low-resource-tiny-table.csv', 'low-resource-tiny-enough.csv'):
        assert (folder/name).read_text() == (low_resource/'runs'/name).read_text()
    assert kept.items() <= finished(folder).items() and len(finished(folder)) == 4

@pytest.mark.slow
def test_run_world_knobs(tmp_path):
    "Two worlds in one folder, with a teacher each, and the controls of distillation."
    run('run_world_knobs', tmp_path, preset='tiny', smoke=True, worlds='default, sigma 1.2', rows='VDF, VDF-TS-E', controls='VDF-TS-E, VDF-TS-E shuffled', jobs=1)
    folder = tmp_path/'runs'
    rows = pd.read_csv(folder/'world-knobs-tiny.csv')
    assert list(rows.columns) == [*TIDY, 'world'] and set(rows.world) == {'default', 'sigma 1.2'}
    assert len(list((folder/'teachers').glob('teacher-*/last.safetensors'))) == 2
    assert set(pd.read_csv(folder/'world-knobs-tiny-control-verdicts.csv').claim) == {'VDF-TS-E > VDF-TS-E shuffled'}
    assert set(pd.read_csv(folder/'world-knobs-tiny-items.csv').world) == {'default', 'sigma 1.2'}

@pytest.mark.parametrize('wrong, says', [(dict(sizes='0, 5'), '0 of 16 records'), (dict(sizes='17'), '17 of 16 records'), (dict(sizes='-5'), '-5 of 16 records'), (dict(sizes='few'), 'not a list of numbers'), (dict(seeds=0), 'nothing to run')])
def test_a_sweep_that_cannot_be_run_is_refused(wrong, says):
    "The calls of run_low_resource, without the notebook's start."
    given = dict(sizes='', seeds=1) | wrong
    with pytest.raises(DataError, match=says): size_jobs(['VDF'], [], sample_sizes(given['sizes'], 16), range(given['seeds']), preset='tiny')
