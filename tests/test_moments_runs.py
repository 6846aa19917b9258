"""The second half's experiments as a user runs them, on a generated world and on files in the
layout of the release."""
import json, os, shutil
from pathlib import Path

import h5py
import pandas as pd
import papermill
import pytest

from mcls_nb.core import DataError
from mcls_nb.papers.claims import PAPERS
from mcls_nb.papers.runs import Run
from mcls_nb.papers.scores import TIDY, moment_limits, named, read_tidy
from mcls_nb.retrieve.data import Query
from mcls_nb.retrieve.mtvr import load_mtvr, save_mtvr
from mcls_nb.retrieve.recipes import judged_on

ROOT = Path(__file__).resolve().parents[1]
METRICS = PAPERS['C3 test'].metrics
TASKS = {'VCMR R@1 IoU=0.5', 'SVMR en R@1 IoU=0.7', 'VR zh R@10', 'VR en frames R@1',
         'VR subtitles R@1', 'VR agreement @1'}

def execute(notebook, tmp_path, **parameters):
    "Execute a notebook; the folder that it wrote."
    given = dict(preset='tiny', smoke=True, seeds=1, jobs=1, out=str(tmp_path/'runs'))
    papermill.execute_notebook(ROOT/'nbs'/f'{notebook}.ipynb', tmp_path/f'{notebook}.ipynb',
                               given | parameters, kernel_name='python3', progress_bar=False)
    return tmp_path/'runs'

QUESTIONS = { # tables of the C³ paper -> systems that they compare
    '1, 2': 'XML, mXML',
    '1, 2, 3, 5, 6': 'XML, mXML, C3 Q1, C3',
    '7': 'XML, IC2',
    '4': 'mXML, C3 w/o vr, C3'}

@pytest.mark.slow
@pytest.mark.parametrize('tables', QUESTIONS)
def test_parts_of_the_tables(tmp_path, tables):
    systems = QUESTIONS[tables]
    folder = execute('run_table', tmp_path, paper='C3', tables=tables, systems=systems, cache='')
    table = read_tidy(folder/'table-c3-tiny.csv')
    assert tuple(table.columns) == TIDY and set(table.system) == set(systems.split(', '))
    assert TASKS | set(METRICS[1]) <= set(named(table).name)
    assert table.value.between(0, 100).all()
    verdicts = pd.read_csv(folder/'table-c3-tiny-verdicts.csv')
    assert set(verdicts.verdict) <= {'holds', 'does not hold', 'undecided', 'not run'}
    assert len(verdicts) and set(verdicts.table) <= set(map(int, tables.split(', ')))
    assert (tmp_path/'run_table.ipynb').stat().st_size < 1_000_000

@pytest.mark.slow
def test_factors(tmp_path):
    folder = execute('run_c3_factors', tmp_path, settings='default, beta 0, corr 1')
    found = pd.read_csv(folder/'c3-factors-tiny-differences.csv')
    assert list(found.setting.unique()) == ['default', 'beta 0', 'corr 1']
    assert set(found.claim) == {'C3 Q1 > mXML'}
    models = list((folder/'models').glob('*/last.safetensors'))
    assert len(models) == 5 # two worlds with a teacher, three students
    with pytest.raises(papermill.PapermillExecutionError, match="did you mean 'corr'"):
        execute('run_c3_factors', tmp_path, settings='cor 1')

@pytest.fixture(scope='module')
def released(tmp_path_factory):
    "A generated corpus in the layout of the release, its test answers hidden."
    folder = tmp_path_factory.mktemp('mtvr')
    corpus = Run('mXML', 'tiny', smoke=True).open()
    shown = corpus.splits['test']
    corpus.splits['test'] = [Query(q.id, '', None, q.type, q.texts) for q in shown]
    save_mtvr(corpus, folder)
    return folder

@pytest.mark.slow
def test_on_files(tmp_path, released):
    given = dict(paper='C3', systems='mXML, C3 Q1', cache='')
    folder = execute('run_table', tmp_path, data=str(released), **given)
    assert TASKS <= set(named(read_tidy(folder/'table-c3-tiny.csv')).name)

def test_hidden_answers_are_not_judged(released):
    corpus = load_mtvr(released)
    assert judged_on(corpus) == 'val'
    found = moment_limits(corpus)
    assert (found.floor <= found.ceiling).all()
    assert set(found.metric) >= {'VR R@1', 'SVMR R@1 IoU=0.7', 'VCMR R@10 IoU=0.5'}
    del corpus.splits['val']
    with pytest.raises(DataError, match='no test or val split with moments'): judged_on(corpus)

def altered(text):
    "The annotations with a moment that ends elsewhere, and with a query of other letters."
    query = json.loads(text.split('\n')[0])
    end = f'"ts": [{json.dumps(query["ts"][0])}, {json.dumps(query["ts"][1])}]'
    later = end[:-2] + str((int(end[-2]) + 1) % 10) + ']'
    yield text.replace(end, later, 1)
    letter = '"descs": {"en": "'
    at = text.index(letter) + len(letter)
    yield text[:at] + '_' + text[at + 1:]

def test_content_decides_which_run_it_is(tmp_path, released):
    "Not names, sizes and times; nor what nobody reads. What systems share bears the same mark."
    shutil.copytree(released, folder := tmp_path/'mtvr')
    def names(): return [Run(s, 'tiny', data=str(folder)).name for s in ('C3', 'MEE')]
    before = names()
    def differ(): return all(a != b for a, b in zip(names(), before))
    for file in sorted(folder.glob('mtvr_features/**/*.h5')):
        with h5py.File(file, 'r+') as f:
            x = f[next(iter(f))]
            was = x[0, 0]
            x[0, 0] = was + 1
        assert differ(), file # one number
        with h5py.File(file, 'r+') as f: f[next(iter(f))][0, 0] = was
        assert names() == before
    annotations = folder/'tvr_zh_en_train_release.jsonl'
    text = annotations.read_text('utf-8')
    for changed in altered(text):
        assert len(changed) == len(text) and changed != text
        annotations.write_text(changed, 'utf-8')
        assert differ()
        annotations.write_text(text, 'utf-8')
    os.utime(annotations, (0, 0))
    for name in ('.DS_Store', 'mtvr_features/.DS_Store', 'thesis.tex', 'runs/c3/rows.csv'):
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        (folder/name).write_text('x')
    assert names() == before

CODE = 'import sys; from mcls_nb.papers.runs import Run; Run("C3 Q1", "tiny", 3).rows(sys.argv[1])'

@pytest.mark.slow
def test_killed_and_started_again(undisturbed):
    """SIGKILL in the teacher's and in the student's training; then bit for bit what an undisturbed
    run in another process gives."""
    blows = [('models/*/history.csv', models) for models in (1, 2)]
    undisturbed(CODE, blows, ('*/rows.csv', '*/hits.csv'))

WRONG = [
    (dict(system='C³'), "no system 'C³'"),
    (dict(preset='large'), "no preset 'large'"),
    (dict(epochs=-1), '-1 epochs are none'),
    (dict(world=dict(train=-5)), 'train'),
    (dict(system='C3', consolidation=dict(tau=.1)), "did you mean 'tau_vr'"),
    (dict(system='C3', consolidation=dict(tau_vr=-1.)), 'no temperature'),
    (dict(system='C3', consolidation=dict(beta=-1.)), 'is negative'),
    (dict(system='MCN', network=dict(d=8)), 'MCN has no such parameter'),
    (dict(data='nowhere'), 'no such folder')]

@pytest.mark.parametrize('wrong, says', WRONG, ids=str)
def test_what_cannot_be_run_is_refused(tmp_path, wrong, says):
    fields = dict(system='mXML', preset='tiny', smoke=True) | wrong
    with pytest.raises(DataError, match=says): Run(**fields).rows(tmp_path/'runs')
    assert not (tmp_path/'runs').exists()


# --- notebooks about sizes and settings

def test_run_scale_draws_both_curves(tmp_path):
    how = dict(preset='tiny', smoke=True, data='0.5, 1', updates='1', pairs='C3 Q1 > mXML', jobs=1)
    execute('run_scale', tmp_path, **how)
    found = pd.read_csv(tmp_path/'runs'/'scale-c3-tiny-differences.csv')
    points = found[['axis', 'multiple']].drop_duplicates().values.tolist()
    assert points == [['data', 1.], ['updates', 1.], ['data', .5]]
    assert set(found.claim) == {'C3 Q1 > mXML'} and set(found.verdict) == {'undecided'} # one seed

def test_run_tuning_writes_settings(tmp_path):
    how = dict(preset='tiny', families='MEE', trials=2, jobs=1, out=str(tmp_path/'tuning'))
    for _ in range(2): # the second time it reads
        papermill.execute_notebook(ROOT/'nbs'/'run_tuning.ipynb', tmp_path/'tuning.ipynb', how,
                                   kernel_name='python3', progress_bar=False)
    known = json.loads((tmp_path/'tuning'/'settings-tiny.json').read_text())
    assert list(known['families']) == ['MEE'] and known['budget']['trials'] == 2
    assert len(pd.read_csv(tmp_path/'tuning'/'trials-tiny.csv')) == 2
