"Sweeps: killed at any moment, started twice, on a cluster; files of results that are none."
import os, signal, subprocess, sys, time
from pathlib import Path

import joblib
import pandas as pd
import pytest

from mcls_nb import runs, training
from mcls_nb.core import DataError
from mcls_nb.papers.scores import TIDY
from mcls_nb.experiments import job, run
from mcls_nb.papers.runs import grid, sweep
from mcls_nb.summarize.rows import SummaryJob

JOBS = [job(row, 'tiny', seed, smoke=True) for seed in (0, 1) for row in ('NCLS', 'VDF-TS-E')] # two teachers


def same(a, b): pd.testing.assert_frame_equal(a, b, check_exact=True)

def finished(out): return {p: p.stat().st_mtime_ns for p in Path(out).glob('*/rows.csv')}


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
    "The table of a sweep that nothing disturbs."
    return sweep(JOBS, tmp_path_factory.mktemp('straight'), workers=1)


def child(action, out, *more):
    "This file in a process group of its own."
    return subprocess.Popen([sys.executable, __file__, action, str(out), *map(str, more)], env=os.environ | dict(OMP_NUM_THREADS='1'), text=True,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


# --- killed ---

MOMENTS = [ # processes, and what has to be there before the blow falls; a little later, so that it falls anywhere in what comes next
    (2, lambda out: any(out.glob('teachers/.locks/*'))), # in all of the group, while a teacher is trained
    (1, lambda out: len(finished(out)) >= 1),
    (1, lambda out: len(finished(out)) >= 2 and any(out.glob('*/distil/history.csv')))]

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
    assert 2 <= len(before) < len(JOBS)
    same(sweep(JOBS, tmp_path, workers=1), straight)
    everything = finished(tmp_path)
    assert before.items() <= everything.items() and len(everything) == len(JOBS)
    same(sweep(JOBS, tmp_path, workers=1), straight) # read
    assert finished(tmp_path) == everything


# --- two at once ---

@pytest.mark.slow
def test_started_twice_at_once(tmp_path, straight):
    both = [child('logged', tmp_path/'runs', tmp_path/name) for name in 'ab']
    for p in both: assert p.wait(timeout=120) == 0, p.stderr.read()
    updates = [(tmp_path/name/'updates').read_text().split('\n')[:-1] for name in 'ab']
    for name in 'ab': same(pd.read_csv(tmp_path/name/'table.csv'), straight)
    assert len({*updates[0], *updates[1]}) == len(updates[0] + updates[1]) # no update was made twice, here or there
    trained = {u.rsplit(' ', 1)[0] for u in updates[0] + updates[1]}
    assert len([t for t in trained if t.startswith('teachers/')]) == 2
    assert {t for t in trained if not t.startswith('teachers/')} == {f'{j.folder("").name}/{part}' for j in JOBS for part in (['train'] if j.row == 'NCLS' else ['distil', 'train'])}
    assert all(updates) # each had something to do
    assert not list((tmp_path/'runs').rglob('*.tmp'))


# --- on a cluster ---

@pytest.mark.slow
def test_on_a_cluster(tmp_path, straight):
    from distributed import Client, LocalCluster
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster), joblib.parallel_config('dask'):
        same(sweep(JOBS, tmp_path), straight)
    assert len(finished(tmp_path)) == len(JOBS) and len([p for p in (tmp_path/'teachers').iterdir() if p.is_dir()]) == 2


@pytest.mark.slow
def test_threads_take_turns(tmp_path, straight):
    with joblib.parallel_config('threading'): table = sweep(JOBS[::2], tmp_path, workers=2)
    same(table, straight[straight.row == 'NCLS'].reset_index(drop=True))


# --- what users hand in ---

@pytest.mark.parametrize('call,says', [
    (lambda: grid(['NCLS'], []), 'there is nothing to run; give at least one row and one seed'),
    (lambda: grid([], [0]), 'there is nothing to run'),
    (lambda: grid(['NCLS'], [0], samples=()), 'there is nothing to run'),
    (lambda: grid(['NCLS', 'VDF-TSE'], [0]), "there is no row 'VDF-TSE'; did you mean 'VDF-TS-E'?"),
    (lambda: grid(['VDF'], [0], preset='tinny'), "did you mean 'tiny'?"),
    (lambda: grid(['VDF'], [0], epochs=0), '0 epochs are none'),
    (lambda: grid(['VDF'], [0], smaples=3), "there is no parameter 'smaples'; did you mean 'samples'?"),
    (lambda: sweep(grid(['NCLS'], [0], samples=[17], preset='tiny', smoke=True), 'nowhere', workers=1), '17 of 16 records cannot be had')])
def test_one_clear_sentence(call, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as e: call()
    assert says in str(e.value) and '\n' not in str(e.value)


@pytest.mark.parametrize('text', [b'a,b\n1,2\n', b'run,row\nx,y\n', ','.join(reversed(TIDY)).encode(), b'\0\1', b'', b'\xff\xfe\0', b'a\nb,c\n"'])
def test_results_that_are_none(text, tmp_path):
    path = job('NCLS', 'tiny', smoke=True).folder(tmp_path)/'rows.csv'
    path.parent.mkdir()
    path.write_bytes(text)
    with pytest.raises(DataError, match='delete it to run again') as e: run('NCLS', 'tiny', smoke=True, out=tmp_path)
    assert str(path) in str(e.value) and '\n' not in str(e.value)
    assert path.read_bytes() == text


@pytest.fixture
def pretend(monkeypatch):
    "Jobs that cost nothing; the list of those that were run."
    done = []
    def fake(job, folder, out, only=None):
        done.append(job)
        folder.mkdir()
        return pd.DataFrame([dict.fromkeys(TIDY, 0) | dict(row=job.row, seed=job.seed, config_hash=job.about, metric='m', value=.1 + .2 * len(done))])
    monkeypatch.setattr(SummaryJob, 'perform', fake)
    return done


def test_order_of_the_jobs_and_nothing_twice(tmp_path, pretend):
    jobs = grid(['MT', 'NCLS', 'VDF'], [2, 0], preset='tiny')
    table = sweep(jobs, tmp_path, workers=1)
    assert list(zip(table.row, table.seed)) == [(j.row, j.seed) for j in jobs] and pretend == jobs
    same(sweep(jobs[::-1], tmp_path, workers=1), table[::-1].reset_index(drop=True))
    assert len(pretend) == 6


def test_others_are_passed_over_and_come_back_to(tmp_path, pretend):
    from filelock import FileLock
    jobs, fake = grid(['MT', 'NCLS', 'VDF'], [0], preset='tiny'), SummaryJob.perform
    lock = FileLock(jobs[0].folder(tmp_path).parent/'.locks'/jobs[0].folder(tmp_path).name)
    lock.acquire()
    assert run('MT', 'tiny', out=tmp_path, wait=0) is None
    def last_one_frees_the_first(job, *args):
        if job.row == 'VDF': lock.release()
        return fake(job, *args)
    SummaryJob.perform = last_one_frees_the_first # undone by the fixture
    table = sweep(jobs, tmp_path, workers=1)
    assert [j.row for j in pretend] == ['NCLS', 'VDF', 'MT'] and list(table.row) == ['MT', 'NCLS', 'VDF']


def test_a_world_of_its_own(tmp_path, pretend):
    assert len(sweep(grid(['NCLS', 'MT'], [0], preset='tiny', world=dict(sigma=.9)), tmp_path, workers=1)) == 2


def test_folder_is_the_callers(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(runs, 'run', lambda job, out, *how: asked.append(out) or pd.DataFrame(columns=list(TIDY)))
    monkeypatch.chdir(tmp_path)
    sweep(JOBS[:1], 'runs', workers=1)
    assert [str(out) for out in asked] == [str(tmp_path/'runs')]


# --- several processes for one run ---

@pytest.mark.slow
def test_one_run_on_two_processes(tmp_path):
    p = subprocess.Popen([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', __file__, 'run', str(tmp_path)], start_new_session=True,
                         env=os.environ | dict(OMP_NUM_THREADS='1'), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try: assert p.wait(timeout=240) == 0, p.stderr.read()
    finally:
        if p.poll() is None: os.killpg(p.pid, signal.SIGKILL)
    assert len(finished(tmp_path)) == 1


def main(action, out, more=None):
    if action == 'run': run('VDF-TS-E', 'tiny', smoke=True, out=out)
    if action == 'sweep': sweep(JOBS, out, int(more))
    if action == 'logged': # every update leaves a line
        Path(more).mkdir()
        update = training.Trainer.update
        with open(Path(more)/'updates', 'w') as lines:
            def logged(run, batch):
                lines.write(f'{run.out.relative_to(out)} {run.at["step"]}\n')
                return update(run, batch)
            training.Trainer.update = logged
            table = sweep(JOBS, out, workers=1)
        table.to_csv(Path(more)/'table.csv', index=False)


if __name__ == '__main__': main(*sys.argv[1:])
