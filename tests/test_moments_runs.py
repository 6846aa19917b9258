"The second half's experiments as a user runs them, on a generated world and on files in the layout of the release."
import json, os, shutil
from pathlib import Path

import h5py
import pandas as pd
import papermill
import pytest

from mcls_nb.core import DataError
from mcls_nb.papers.scores import TIDY
from mcls_nb.retrieve.data import load_mtvr, save_mtvr
from mcls_nb.retrieve.recipes import judged_on
from mcls_nb.retrieve.rows import METRICS, MomentJob, limits

ROOT = Path(__file__).resolve().parents[1]
TASKS = {'VCMR R@1 IoU=0.5', 'SVMR en R@1 IoU=0.7', 'VR zh R@10', 'VR en frames R@1', 'VR subtitles R@1', 'VR agreement @1'}

def run(notebook, tmp_path, **parameters):
    given = dict(preset='tiny', smoke=True, seeds=1, jobs=1, out=str(tmp_path/'runs'))
    papermill.execute_notebook(ROOT/'nbs'/f'{notebook}.ipynb', tmp_path/f'{notebook}.ipynb', given | parameters, kernel_name='python3', progress_bar=False)
    return tmp_path/'runs'

@pytest.mark.slow
@pytest.mark.parametrize('notebook, parameters, rows', [
    ('run_mxml', {}, {'XML', 'mXML'}), ('run_c3', {}, {'XML', 'mXML', 'C3 Q1', 'C3'}), ('run_ic2', {}, {'XML', 'IC2'}),
    ('run_c3_ablation', dict(rows='mXML, C3 w/o vr, C3'), {'mXML', 'C3 w/o vr', 'C3'})], ids=lambda x: x if isinstance(x, str) else '')
def test_notebooks_of_the_tables(tmp_path, notebook, parameters, rows):
    folder = run(notebook, tmp_path, **parameters)
    table = pd.read_csv(folder/f'{notebook[4:].replace("_", "-")}-tiny.csv')
    assert tuple(table.columns) == TIDY and set(table.row) == rows
    assert TASKS | set(METRICS[1]) <= set(table.metric) and table.value.between(0, 100).all()
    verdicts = pd.read_csv(next(folder.glob('*-verdicts.csv')))
    assert set(verdicts.verdict) <= {'holds', 'does not hold', 'undecided', 'not run'} and len(verdicts)
    assert (tmp_path/f'{notebook}.ipynb').stat().st_size < 1_000_000

@pytest.mark.slow
def test_factors(tmp_path):
    folder = run('run_c3_factors', tmp_path, settings='default, beta 0, corr 1')
    found = pd.read_csv(folder/'c3-factors-tiny-differences.csv')
    assert list(found.setting.unique()) == ['default', 'beta 0', 'corr 1'] and set(found.claim) == {'C3 Q1 > mXML'}
    assert len(list((folder/'models').glob('*/last.safetensors'))) == 5 # two worlds with a teacher, three students
    with pytest.raises(papermill.PapermillExecutionError, match="did you mean 'corr'"): run('run_c3_factors', tmp_path, settings='cor 1')

@pytest.fixture(scope='module')
def released(tmp_path_factory):
    "A generated corpus in the layout of the release, its test answers hidden."
    folder = tmp_path_factory.mktemp('mtvr')
    corpus = MomentJob(preset='tiny', smoke=True).open()
    corpus.splits['test'] = [type(q)(q.id, '', None, q.type, q.texts) for q in corpus.splits['test']]
    save_mtvr(corpus, folder)
    return folder

@pytest.mark.slow
def test_on_files(tmp_path, released):
    folder = run('run_c3', tmp_path, data=str(released), rows='mXML, C3 Q1')
    assert TASKS <= set(pd.read_csv(folder/'c3-tiny.csv').metric)

def test_hidden_answers_are_not_judged(released):
    corpus = load_mtvr(released)
    assert judged_on(corpus) == 'val'
    found = limits(corpus)
    assert (found.floor <= found.ceiling).all() and set(found.metric) >= {'VR R@1', 'SVMR R@1 IoU=0.7', 'VCMR R@10 IoU=0.5'}
    del corpus.splits['val']
    with pytest.raises(DataError, match='no test or val split with moments'): judged_on(corpus)

def test_content_decides_which_run_it_is(tmp_path, released):
    "Not names, sizes and times; nor what nobody reads. What rows share bears the same mark."
    shutil.copytree(released, folder := tmp_path/'mtvr')
    names = lambda: [MomentJob(row, 'tiny', data=str(folder)).about for row in ('C3', 'MEE')]
    differ = lambda: all(a != b for a, b in zip(names(), before))
    before = names()
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
    query = json.loads(text.split('\n')[0])
    end = f'"ts": [{json.dumps(query["ts"][0])}, {json.dumps(query["ts"][1])}]'
    later = end[:-2] + str((int(end[-2]) + 1) % 10) + ']' # the moment ends elsewhere
    letter = '"descs": {"en": "'
    at = text.index(letter) + len(letter)
    for changed in (text.replace(end, later, 1), text[:at] + '_' + text[at + 1:]):
        assert len(changed) == len(text) and changed != text
        annotations.write_text(changed, 'utf-8')
        assert differ()
        annotations.write_text(text, 'utf-8')
    os.utime(annotations, (0, 0))
    for name in ('.DS_Store', 'mtvr_features/.DS_Store', 'thesis.tex', 'runs/c3/rows.csv'):
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        (folder/name).write_text('x')
    assert names() == before

CODE = 'import sys; from mcls_nb.retrieve.rows import MomentJob; from mcls_nb.runs import run; run(MomentJob("C3 Q1", "tiny", 3), sys.argv[1])'

@pytest.mark.slow
def test_killed_and_started_again(undisturbed):
    "SIGKILL in the teacher's and in the student's training; then bit for bit what an undisturbed run in another process gives."
    undisturbed(CODE, [('models/*/history.csv', models) for models in (1, 2)], ('*/rows.csv', '*/hits.csv'))

@pytest.mark.parametrize('job, says', [
    (dict(row='C³'), "no row 'C³'"), (dict(preset='large'), "no preset 'large'"), (dict(epochs=-1), '-1 epochs are none'), (dict(world=dict(train=-5)), 'train'),
    (dict(row='C3', consolidation=dict(tau=.1)), "did you mean 'tau_vr'"), (dict(row='C3', consolidation=dict(tau_vr=-1.)), 'no temperature'),
    (dict(row='C3', consolidation=dict(beta=-1.)), 'is negative'), (dict(data='nowhere'), 'no such folder')], ids=str)
def test_what_cannot_be_run_is_refused(tmp_path, job, says):
    from mcls_nb.runs import run
    with pytest.raises(DataError, match=says): run(MomentJob(**{'preset': 'tiny', 'smoke': True} | job), tmp_path)
