"""The experiment notebooks as a user runs them: through papermill, in a folder of their own."""
import dataclasses, json, subprocess, sys, time
from pathlib import Path

import pandas as pd
import papermill
import psutil
import pytest

from helpers import refused
from mcls_nb.core import DataError
from mcls_nb.papers import runs
from mcls_nb.papers.claims import comparable, item_difference, verdict
from mcls_nb.papers.low_resource import sample_sizes, size_runs
from mcls_nb.papers.runs import Run, all_defaults, known_defaults
from mcls_nb.papers.scores import TIDY, named, read_tidy, tidy
from mcls_nb.summarize.models import SummarizerConfig

ROOT = Path(__file__).resolve().parents[1]

def execute(notebook, tmp_path, **parameters):
    "Execute a notebook, which writes below `tmp_path/'runs'`."
    book, given = f'{notebook}.ipynb', dict(out=str(tmp_path/'runs')) | parameters
    papermill.execute_notebook(
        ROOT/'nbs'/book, tmp_path/book, given, kernel_name='python3', progress_bar=False)

def written(tmp_path): return {p.name for p in (tmp_path/'runs').rglob('*') if p.is_file()}

@pytest.mark.slow
@pytest.mark.parametrize('system', ['VDF', 'MT'])
def test_run_vdf(tmp_path, system):
    execute('run_vdf', tmp_path, preset='tiny', system=system, smoke=True)
    files = written(tmp_path)
    assert {'rows.csv', 'summaries.csv', 'best.safetensors', 'last.safetensors', 'history.csv',
            'curves.json', 'attention.json'} <= files
    assert ({'video.json', 'gate.json'} <= files) == (system == 'VDF')
    table = read_tidy(next((tmp_path/'runs').rglob('rows.csv')))
    assert set(table.system) == {system}
    assert table.query('metric == "rougeL"').value.between(0, 100).all()
    assert (tmp_path/'run_vdf.ipynb').stat().st_size < 1_000_000

def test_an_unknown_parameter_is_refused(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="did you mean 'epochs'"):
        execute('run_vdf', tmp_path, preset='tiny', epoch=1, smoke=True)
    assert not written(tmp_path)

CODE = """
import sys
from mcls_nb.papers.runs import Run
Run("VDF", "tiny", seed=int(sys.argv[2]), epochs=3).result(sys.argv[1])
"""

def in_a_process(folder, seed):
    "Train and judge in a process of its own."
    subprocess.run([sys.executable, '-c', CODE, folder, str(seed)], check=True, capture_output=True)

def without_the_clock(path):
    "A history without how fast it went."
    clock = 'per_second|steps/s'
    return pd.read_csv(path).query(f'not metric.str.contains("{clock}")', engine='python')

@pytest.mark.slow
def test_same_seed_same_summaries_in_another_process(tmp_path):
    for name in 'ab': in_a_process(tmp_path/name, 3)
    for file in ('summaries.csv', 'rows.csv', 'history.csv', 'best.safetensors'):
        a, b = (next((tmp_path/name).rglob(file)) for name in 'ab')
        if file == 'history.csv':
            pd.testing.assert_frame_equal(*map(without_the_clock, (a, b)))
        elif file != 'best.safetensors': assert a.read_bytes() == b.read_bytes()
    in_a_process(tmp_path/'c', 4)
    a, c = (next((tmp_path/name).rglob('summaries.csv')) for name in 'ac')
    assert c.read_bytes() != a.read_bytes()

@pytest.mark.slow
def test_real_records_train(tmp_path, shared_data):
    execute('run_vdf', tmp_path, preset='tiny', data=str(shared_data/'how2_mcls_demo'), epochs=2)
    assert len(pd.read_csv(next((tmp_path/'runs').rglob('summaries.csv')))) == 2


# --- what decides a run's name ---

NAMES = { # as they are on people's disks
    Run('VDF'): 'vdf-small-s0-4307702e9268',
    Run('VDF-TS-E', seed=2, samples=60): 'vdf-ts-e-small-n60-s2-83f031dbacd2',
    Run('Pipe-NCLS', epochs=3): 'pipe-ncls-small-s0-c5e9af7250f2',
    Run('HA', world=dict(sigma=.9)): 'ha-small-s0-322b42b4962e',
    Run('C3'): 'c3-small-s0-6c313d007ac3',
    Run('C3 sum', seed=1): 'c3-sum-small-s1-e36fc83dc7b4',
    Run('MCN'): 'mcn-small-s0-70208229b699',
    Run('C3 Q1', 'full', consolidation=dict(tau_vr=.1)): 'c3-q1-full-s0-f5d366d2a260'}

def test_names_of_finished_runs_stay():
    "Results that are finished must be found again."
    for run, name in NAMES.items(): assert run.name == name

@dataclasses.dataclass(frozen=True)
class Deeper(SummarizerConfig):
    deeper: bool = False # a field that there was not

@dataclasses.dataclass(frozen=True)
class Warmer(SummarizerConfig):
    dropout: float = .4 # another default

@pytest.fixture
def changed(monkeypatch):
    "The name of a run whose network has another configuration."
    system, preset = Run('VDF').of, Run('VDF').sizes
    usual, given = vars(SummarizerConfig()), vars(preset.transformer)
    given = {name: value for name, value in given.items() if value != usual[name]}
    def name(new, **more):
        new.__name__ = 'SummarizerConfig' # as if it had been edited
        sizes = dataclasses.replace(preset, transformer=new(**given, **more))
        monkeypatch.setitem(system.presets, 'small', sizes)
        return Run('VDF').name
    return name

def test_a_new_field_changes_no_name_and_a_new_default_does(changed):
    before = NAMES[Run('VDF')]
    assert changed(SummarizerConfig) == changed(Deeper) == before
    assert changed(Deeper, deeper=True) != before
    assert changed(Warmer) != before
    assert changed(Warmer, dropout=SummarizerConfig().dropout) == before

def test_every_field_that_had_a_default_is_still_there():
    now = all_defaults()
    file = ROOT/'mcls_nb'/'papers'/f'defaults-{runs.DEFAULTS_VERSION}.json'
    assert json.loads(file.read_text('utf-8')) == known_defaults()
    for name, fields in known_defaults().items():
        assert not fields.keys() - now[name].keys(), name

def test_no_configuration_lacks_known_defaults():
    "What decides numbers has its defaults in the file, from the beginning."
    assert all_defaults().keys() == known_defaults().keys()


# --- what cannot be run ---

WRONG = {
    'unknown system': (dict(system='VDFF'), "did you mean 'VDF'?"),
    'no system': (dict(system=['VDF']), "['VDF'] is not a text"),
    'unknown preset': (dict(preset='smal'), "did you mean 'small'?"),
    'seed of letters': (dict(seed='a'), "'a' is not a whole number"),
    'negative seed': (dict(seed=-1), '-1 is no seed'),
    'seed of truth': (dict(seed=True), 'True is not a whole number'),
    'no epochs': (dict(epochs=0), '0 epochs are none'),
    'parts of epochs': (dict(epochs=2.5), '2.5 is not a whole number'),
    'samples of letters': (dict(samples='x'), "'x' is not a whole number"),
    'no samples': (dict(samples=0), '0 of 150 records cannot be had'),
    'too many samples': (dict(samples=151), '151 of 150 records cannot be had'),
    'smoke of letters': (dict(smoke='no'), "'no' is not True or False"),
    'unknown weights': (dict(use='first'), "'first' is not a possible value"),
    'data of numbers': (dict(data=3), '3 is not a text'),
    'no data': (dict(data='nowhere'), 'there is no such folder'),
    'unknown field of the world': (dict(world=dict(sigam=1.)), "did you mean 'sigma'?"),
    'wrong field of the world': (dict(world=dict(sigma='much')), "'much' is not a number"),
    'world of letters': (dict(world='sigma'), "'sigma' is not a dict of fields"),
    'unknown field of the network': (dict(network=dict(haeds=4)), "did you mean 'heads'?"),
    'impossible network': (dict(network=dict(heads=5)), '5 heads do not divide a width of 48'),
    'rule of a summariser': (dict(rule=dict(max_clips=9)), 'VDF has no such parameter'),
    'teacher of a summariser': (dict(consolidation=dict(beta=0.)), 'VDF has no such parameter'),
    'samples of a retriever': (dict(system='C3', samples=9), 'C3 has no such parameter'),
    'weights of a retriever': (dict(system='mXML', use='last'), 'mXML has no such parameter'),
    'unknown field of the rule': (dict(system='C3', rule=dict(klip=2.)), "did you mean 'clip'?"),
    'network of a baseline': (dict(system='MEE+MCN', network=dict(d=8)), 'has no such parameter')}

@pytest.mark.parametrize('case', WRONG)
def test_a_wrong_run_is_refused_before_anything_is_trained(tmp_path, monkeypatch, case):
    wrong, says = WRONG[case]
    def trained(*args, **how): raise AssertionError('something was trained')
    monkeypatch.setattr('mcls_nb.training.Trainer.__init__', trained)
    fields = dict(system='VDF', preset='tiny') | wrong
    refused(lambda: Run(**fields).rows(tmp_path/'runs'), says)
    assert not list(tmp_path.rglob('*.safetensors')) and not list(tmp_path.rglob('rows.csv'))

BAD_SWEEPS = [
    (dict(sizes='0, 5'), '0 of 16 records'), (dict(sizes='17'), '17 of 16 records'),
    (dict(sizes='-5'), '-5 of 16 records'), (dict(sizes='few'), 'not a list of numbers'),
    (dict(seeds=0), 'nothing to run')]

@pytest.mark.parametrize('wrong, says', BAD_SWEEPS)
def test_a_sweep_that_cannot_be_run_is_refused(wrong, says):
    "The calls of run_low_resource, without the notebook's start."
    given = dict(sizes='', seeds=1) | wrong
    with pytest.raises(DataError, match=says):
        sizes = sample_sizes(given['sizes'], 16)
        size_runs(['VDF'], [], sizes, range(given['seeds']), preset='tiny')

def rows_of(*runs): # (system, preset, seed)
    "Tidy rows of runs that nobody made."
    lines = [dict(system=s, preset=p, seed=seed, value=50. + seed) for s, p, seed in runs]
    return tidy(lines, split='test', task='summary', metric='rougeL')

def test_what_cannot_be_compared_is_refused():
    apart = rows_of(('VDF', 'tiny', 0), ('MT', 'tiny', 1))
    refused(lambda: verdict(apart, 'VDF', 'MT', 'rougeL'), 'VDF and MT share no seed')
    refused(lambda: verdict(apart, 'VDF', 'NCLS', 'rougeL'), "no system with rougeL 'NCLS'")
    refused(lambda: verdict(apart, 'VDF', 'MT', 'rouge9'), "no metric 'rouge9'")
    one, other = ([Run('VDF', seed=s)] for s in (0, 1))
    refused(lambda: item_difference(one, other, 'rougeL'), 'the two systems share no seed')
    refused(lambda: item_difference(one, one, 'rougeL', 'nowhere'), 'this run is not finished')
    two = rows_of(('VDF', 'tiny', 0), ('VDF', 'small', 0))
    refused(lambda: comparable(two), 'there are runs of the presets tiny, small')
    twice = rows_of(('VDF', 'tiny', 0), ('VDF', 'tiny', 0))
    refused(lambda: comparable(twice), "'VDF' was run twice with seed 0")


# --- few samples ---

SMALL = dict(preset='tiny', smoke=True, systems='VDF-TS-E, VDF', references='VDF', sizes='4, 16',
             seeds=1, jobs=1)
FILES = tuple(f'low-resource-tiny{part}.csv' for part in ('', '-table', '-enough'))

def finished(folder):
    "The runs that are finished, and when they were."
    return {p.relative_to(folder): p.stat().st_mtime_ns for p in folder.rglob('rows.csv')}

@pytest.fixture(scope='module')
def low_resource(tmp_path_factory):
    "The folder of a sweep that nothing disturbs."
    folder = tmp_path_factory.mktemp('low_resource')
    execute('run_low_resource', folder, **SMALL)
    return folder

@pytest.mark.slow
def test_run_low_resource(low_resource):
    "Files, columns and answers; the second time nothing is run again."
    folder = low_resource/'runs'
    rows, table, answers = (folder/name for name in FILES)
    rows, table, answers = named(read_tidy(rows)), pd.read_csv(table), pd.read_csv(answers)
    assert tuple(rows.columns[:len(TIDY)]) == TIDY
    assert set(rows.label) == {'VDF-TS-E', 'VDF-TS-E @4', 'VDF', 'VDF @4'}
    assert {'rougeL', 'bleu4', 'cider', 'slots'} <= set(rows.name)
    assert 'meteor' not in set(rows.name)
    assert list(table.columns) == ['system', 'samples', 'seeds', 'value', 'low', 'high']
    expected = [(system, n) for system in ('VDF-TS-E', 'VDF') for n in (4, 16)]
    assert list(zip(table.system, table.samples)) == expected
    assert list(zip(answers.system, answers.reference)) == [('VDF-TS-E', 'VDF')] * 2
    assert answers.surely.isna().all() # one seed is never sure
    figure = json.loads((folder/'low-resource-tiny-figure.json').read_text())
    assert [t['name'] for t in figure['data']] == ['VDF-TS-E', 'VDF', 'VDF, all samples']
    before = finished(folder)
    execute('run_low_resource', low_resource, **SMALL)
    assert len(before) == 4 and before == finished(folder)

def kill_all(process):
    "SIGKILL for a process and all that it has started."
    for one in [*psutil.Process(process.pid).children(recursive=True), process]: one.kill()
    process.wait()

@pytest.mark.slow
def test_run_low_resource_killed_and_started_again(low_resource, tmp_path):
    """SIGKILL for papermill, its kernel and the kernel's workers, twice; then the same table, and
    no finished run is run again."""
    folder, command = tmp_path/'runs', [sys.executable, '-m', 'papermill']
    command += ['nbs/run_low_resource.ipynb', tmp_path/'run.ipynb']
    for k, v in dict(SMALL, out=folder, jobs=2).items(): command += ['-p', k, v]
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    for done in (0, 2): # finished runs that the blow waits for
        before = finished(folder)
        p = subprocess.Popen(list(map(str, command)), cwd=ROOT, **quiet)
        def reached(): return len(finished(folder)) >= done and list(folder.glob('.locks/*'))
        while p.poll() is None and not reached(): time.sleep(.01)
        assert p.poll() is None
        kill_all(p)
    kept = finished(folder)
    assert before.items() <= kept.items() and 2 <= len(kept) < 4
    execute('run_low_resource', tmp_path, **SMALL)
    for name in FILES:
        assert (folder/name).read_text() == (low_resource/'runs'/name).read_text()
    assert kept.items() <= finished(folder).items() and len(finished(folder)) == 4


# --- worlds ---

@pytest.mark.slow
def test_run_world_knobs(tmp_path):
    "Two worlds in one folder, with a teacher each, and the controls of distillation."
    execute('run_world_knobs', tmp_path, preset='tiny', smoke=True, worlds='default, sigma 1.2',
            systems='VDF, VDF-TS-E', controls='VDF-TS-E, VDF-TS-E shuffled', jobs=1)
    folder = tmp_path/'runs'
    rows = read_tidy(folder/'world-knobs-tiny.csv')
    assert tuple(rows.columns) == TIDY and set(rows.world) == {'generated', 'sigma 1.2'}
    assert len(list(folder.glob('teachers/**/teacher-*/last.safetensors'))) == 2
    verdicts = pd.read_csv(folder/'world-knobs-tiny-control-verdicts.csv')
    assert set(verdicts.claim) == {'VDF-TS-E > VDF-TS-E shuffled'}
    items = pd.read_csv(folder/'world-knobs-tiny-items.csv')
    assert set(items.world) == {'default', 'sigma 1.2'}
