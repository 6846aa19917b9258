"Sweeps: killed at any moment, started twice, on a cluster; files of results that are none."
import os, signal, subprocess, sys, time
from pathlib import Path

import joblib
import pandas as pd
import pytest

from mcls_nb import training
from mcls_nb.core import DataError
from mcls_nb.papers import runs
from mcls_nb.papers.runs import Run, grid, sweep
from mcls_nb.papers.scores import TIDY, read_tidy, tidy

SYSTEMS = 'NCLS', 'VDF-TS-E' # the second one has a teacher
RUNS = [Run(system, 'tiny', seed, smoke=True) for seed in (0, 1) for system in SYSTEMS]


def same(a, b): pd.testing.assert_frame_equal(a, b, check_exact=True)

def finished(out): return {p: p.stat().st_mtime_ns for p in Path(out).glob('*/rows.csv')}


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
    "The table of a sweep that nothing disturbs."
    return sweep(RUNS, tmp_path_factory.mktemp('straight'), workers=1)


def child(action, out, *more):
    "This file in a process group of its own."
    return quiet([sys.executable, __file__, action, str(out), *map(str, more)])

def quiet(command):
    "A process of which only the complaints are kept."
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                            env=os.environ | dict(OMP_NUM_THREADS='1'), start_new_session=True)


# --- killed ---

def teacher_is_trained(out): return any(out.glob('teachers/.locks/*'))

def one_is_finished(out): return len(finished(out)) >= 1

def a_student_is_distilled(out):
    return len(finished(out)) >= 2 and any(out.glob('*/distil/history.csv'))

# processes, and what has to be there before the blow falls; a little later, so that it falls
# anywhere in what comes next; the first falls on all of the group
MOMENTS = (2, teacher_is_trained), (1, one_is_finished), (1, a_student_is_distilled)

@pytest.mark.slow
def test_killed_and_started_again(tmp_path, straight):
    for workers, reached in MOMENTS:
        before, p = finished(tmp_path), child('sweep', tmp_path, workers)
        while p.poll() is None and not reached(tmp_path): time.sleep(.005)
        time.sleep(.3 * os.urandom(1)[0] / 256)
        os.killpg(p.pid, signal.SIGKILL)
        assert p.wait() == -signal.SIGKILL, p.stderr.read()
        assert before.items() <= finished(tmp_path).items() # what had been finished is as it was
    before = finished(tmp_path)
    assert 2 <= len(before) < len(RUNS)
    same(sweep(RUNS, tmp_path, workers=1), straight)
    everything = finished(tmp_path)
    assert before.items() <= everything.items() and len(everything) == len(RUNS)
    same(sweep(RUNS, tmp_path, workers=1), straight) # read
    assert finished(tmp_path) == everything


# --- two at once ---

def stages_of(run):
    "The folders of the trainings that are a run's own."
    stages = ['train'] if run.system == 'NCLS' else ['distil', 'train']
    return {f'{run.name}/{stage}' for stage in stages}

@pytest.mark.slow
def test_started_twice_at_once(tmp_path, straight):
    both = [child('logged', tmp_path/'runs', tmp_path/name) for name in 'ab']
    for p in both: assert p.wait(timeout=120) == 0, p.stderr.read()
    updates = [(tmp_path/name/'updates').read_text().split('\n')[:-1] for name in 'ab']
    for name in 'ab': same(read_tidy(tmp_path/name/'table.csv'), straight)
    every = updates[0] + updates[1]
    assert len({*every}) == len(every) # no update was made twice, here or there
    trained = {update.rsplit(' ', 1)[0] for update in every}
    teachers = {t for t in trained if t.startswith('teachers/')}
    assert len(teachers) == 2
    assert trained - teachers == set().union(*map(stages_of, RUNS))
    assert all(updates) # each had something to do
    assert not list((tmp_path/'runs').rglob('*.tmp'))


# --- on a cluster ---

def teachers(out): return [p for p in out.glob('teachers/teacher-*') if p.is_dir()]

@pytest.mark.slow
def test_on_a_cluster(tmp_path, straight):
    from distributed import Client, LocalCluster
    two = dict(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with LocalCluster(**two) as cluster, Client(cluster), joblib.parallel_config('dask'):
        same(sweep(RUNS, tmp_path), straight)
    assert len(finished(tmp_path)) == len(RUNS) and len(teachers(tmp_path)) == 2


@pytest.mark.slow
def test_threads_take_turns(tmp_path, straight):
    with joblib.parallel_config('threading'): table = sweep(RUNS[::2], tmp_path, workers=2)
    same(table, straight[straight.system == 'NCLS'].reset_index(drop=True))


# --- what users hand in ---

def too_many(): return grid(['NCLS'], [0], samples=[17], preset='tiny', smoke=True)

@pytest.mark.parametrize('call, says', [
    (lambda: grid(['NCLS'], []), 'there is nothing to run; give at least one system and one seed'),
    (lambda: grid([], [0]), 'there is nothing to run'),
    (lambda: grid(['NCLS'], [0], samples=()), 'there is nothing to run'),
    (lambda: grid(['NCLS', 'VDF-TSE'], [0]), "no system 'VDF-TSE'; did you mean 'VDF-TS-E'?"),
    (lambda: grid(['VDF'], [0], preset='tinny'), "did you mean 'tiny'?"),
    (lambda: grid(['VDF'], [0], epochs=0), '0 epochs are none'),
    (lambda: grid(['VDF'], [0], smaples=3), "no parameter 'smaples'; did you mean 'samples'?"),
    (lambda: sweep(too_many(), 'nowhere', workers=1), '17 of 16 records cannot be had')])
def test_one_clear_sentence(call, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as e: call()
    assert says in str(e.value) and '\n' not in str(e.value)


NONE = (b'a,b\n1,2\n', b'run,system\nx,y\n', ','.join(reversed(TIDY)).encode(), b'\0\1', b'',
        b'\xff\xfe\0', b'a\nb,c\n"')

@pytest.mark.parametrize('text', NONE)
def test_results_that_are_none(text, tmp_path):
    run = Run('NCLS', 'tiny', smoke=True)
    path = tmp_path/run.name/'rows.csv'
    path.parent.mkdir()
    path.write_bytes(text)
    with pytest.raises(DataError, match='delete it to run again') as e: run.rows(tmp_path)
    assert str(path) in str(e.value) and '\n' not in str(e.value)
    assert path.read_bytes() == text


class Pretended:
    "What a run that cost nothing has found."
    def __init__(self, rows): self.rows = rows

@pytest.fixture
def pretend(monkeypatch):
    "Runs that cost nothing; the list of those that were run."
    done = []
    def fake(run, out, only=None):
        done.append(run)
        rows = run.tidy([dict(task='summary', metric='m', value=.1 + .2 * len(done))], 'test')
        (Path(out)/run.name).mkdir()
        runs.write_rows(rows, Path(out)/run.name)
        return Pretended(rows)
    monkeypatch.setattr(Run, 'result', fake)
    return done


def test_order_of_the_runs_and_nothing_twice(tmp_path, pretend):
    some = grid(['MT', 'NCLS', 'VDF'], [2, 0], preset='tiny')
    table = sweep(some, tmp_path, workers=1)
    assert list(zip(table.system, table.seed)) == [(r.system, r.seed) for r in some]
    assert pretend == some
    same(sweep(some[::-1], tmp_path, workers=1), table[::-1].reset_index(drop=True))
    assert len(pretend) == 6


def test_others_are_passed_over_and_come_back_to(tmp_path, pretend):
    from filelock import FileLock
    some, fake = grid(['MT', 'NCLS', 'VDF'], [0], preset='tiny'), Run.result
    (tmp_path/'.locks').mkdir()
    lock = FileLock(tmp_path/'.locks'/some[0].name)
    lock.acquire()
    assert some[0].rows(tmp_path, wait=0) is None
    def last_one_frees_the_first(run, *args):
        if run.system == 'VDF': lock.release()
        return fake(run, *args)
    Run.result = last_one_frees_the_first # undone by the fixture
    table = sweep(some, tmp_path, workers=1)
    assert [r.system for r in pretend] == ['NCLS', 'VDF', 'MT']
    assert list(table.system) == ['MT', 'NCLS', 'VDF']


def test_a_world_of_its_own(tmp_path, pretend):
    some = grid(['NCLS', 'MT'], [0], preset='tiny', world=dict(sigma=.9))
    assert len(sweep(some, tmp_path, workers=1)) == 2


def test_folder_is_the_callers(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(Run, 'rows', lambda run, out, *how: asked.append(out) or tidy([]))
    monkeypatch.chdir(tmp_path)
    sweep(RUNS[:1], 'runs', workers=1)
    assert [str(out) for out in asked] == [str(tmp_path/'runs')]


# --- several processes for one run ---

@pytest.mark.slow
def test_one_run_on_two_processes(tmp_path):
    how = '--standalone', '--nproc_per_node', '2'
    p = quiet([sys.executable, '-m', 'torch.distributed.run', *how, __file__, 'run', str(tmp_path)])
    try: assert p.wait(timeout=240) == 0, p.stderr.read()
    finally:
        if p.poll() is None: os.killpg(p.pid, signal.SIGKILL)
    assert len(finished(tmp_path)) == 1


def logged_sweep(out, folder):
    "A sweep of which every update leaves a line."
    Path(folder).mkdir()
    update = training.Trainer.update
    with open(Path(folder)/'updates', 'w') as lines:
        def logged(trainer, batch):
            lines.write(f'{trainer.out.relative_to(out)} {trainer.at["step"]}\n')
            return update(trainer, batch)
        training.Trainer.update = logged
        table = sweep(RUNS, out, workers=1)
    table.to_csv(Path(folder)/'table.csv', index=False)


def main(action, out, more=None):
    if action == 'run': Run('VDF-TS-E', 'tiny', smoke=True).rows(out)
    if action == 'sweep': sweep(RUNS, out, int(more))
    if action == 'logged': logged_sweep(out, more)


if __name__ == '__main__': main(*sys.argv[1:])
