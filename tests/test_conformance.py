"Every row of the registry keeps the same contract: it learns, its numbers have one form, the same seed gives the same, weights survive a file, padding counts for nothing."
import copy
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import papermill
import pytest
import torch

from mcls_nb.papers.scores import TIDY
from mcls_nb.experiments import job
from mcls_nb.features import ROWS
from mcls_nb.retrieve import baselines, c3
from mcls_nb.retrieve import rows as moments
from mcls_nb.retrieve.encoders import XMLConfig
from mcls_nb.summarize import rows as summaries
from mcls_nb.summarize import recipes as stages
from mcls_nb.summarize.models import SummarizerConfig
from mcls_nb.summarize.rnn import RNNConfig
from mcls_nb.checkpoints import load_weights, save_checkpoint
from mcls_nb.training import FitConfig
from mcls_nb.worlds.how2 import How2WorldConfig
from mcls_nb.worlds.tv import TVWorldConfig

ONCE = FitConfig(epochs=1, batch_size=8, lr=1e-3, use='last') # two steps a stage
SUMMARIES = summaries.Preset(
    How2WorldConfig(topics=3, actions=3, objects=3, tools=2, adjectives=3, people=3, pretrain=16, train=16, val=2, test=3, d_video=8, d_latent=4),
    SummarizerConfig(d=16, heads=2, ffn=16, encoder_layers=3, decoder_layers=1), RNNConfig(embed=16, hidden=8, state=16, layers=1, rows=16),
    ONCE, ONCE, ONCE, ONCE, ONCE, beam=1, max_words=6, threads=1, metrics=('rougeL', 'bleu4'))
SMALL = moments.PRESETS['tiny']
WIDTHS = dict(mcn=dict.fromkeys(('d', 'd_words', 'd_inside'), 16), cal=dict.fromkeys(('d', 'd_words', 'd_inside'), 16), mee=dict(d=16), excl=dict(d=16))
MOMENTS = replace(SMALL, world=TVWorldConfig(train=8, val=4, test=4, time_scale=.2), model=XMLConfig(d=16, heads=2), fit=replace(ONCE, monitor='VCMR'), batch_videos=4,
                  baselines={n: replace(t, network=replace(t.network, **WIDTHS[n]), fit=ONCE, batch_videos=4) for n, t in SMALL.baselines.items()})


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    "Two folders, each with teachers and first-stage models for all rows; what a preset of this file is."
    with pytest.MonkeyPatch.context() as m:
        m.setitem(summaries.PRESETS, 'conform', SUMMARIES)
        m.setitem(moments.PRESETS, 'conform', MOMENTS)
        for half, name in ((summaries, 'world_corpus'), (moments, 'tv_corpus')): # one corpus for all rows of a half
            made = getattr(half, name)(getattr(half, 'How2World' if half is summaries else 'TVWorld')((SUMMARIES if half is summaries else MOMENTS).world, 0))
            m.setattr(half, name, lambda *args, made=made: made)
        yield [tmp_path_factory.mktemp(name) for name in 'ab']


def trainings(row, out, monkeypatch):
    "Perform a row's job; its tidy rows, and (model, data, loss) of each training, the last one last."
    seen = []
    with monkeypatch.context() as m:
        for module in (stages, c3, baselines):
            def spy(model, data, loss, *args, fit=module.fit, **how):
                history = fit(model, data, loss, *args, **how)
                seen.append((model, data, loss))
                return history
            m.setattr(module, 'fit', spy)
        one = job(row, 'conform', 3)
        return one, one.perform(one.folder(out), out), seen


def value(model, loss, batch):
    "Loss per item; whatever is drawn is drawn alike."
    torch.manual_seed(0)
    total, n = loss(model, batch)
    return total / n

@torch.no_grad()
def number(*args): return float(value(*args))

def falls(model, loss, batch):
    "The losses of a few steps on one batch, on a copy."
    model = copy.deepcopy(model)
    optimizer, found = torch.optim.Adam(model.parameters(), lr=5e-3), []
    for _ in range(6):
        found.append(value(model, loss, batch))
        optimizer.zero_grad()
        found[-1].backward()
        optimizer.step()
    return [float(v.detach()) for v in found]

@torch.no_grad()
def shift(module):
    for p in module.parameters(recurse=False): p.add_(torch.linspace(0, 1, p.numel()).view_as(p))

def padded(x):
    "A batch with three more steps on each time axis: not valid, and full of rubbish."
    if isinstance(x, dict): return {k: padded(v) for k, v in x.items()}
    if is_dataclass(x): return replace(x, **{f.name: padded(getattr(x, f.name)) for f in fields(x) if f.name not in ('span', 'own', 'taught', 'share', 'ids', 'names')})
    if not isinstance(x, torch.Tensor) or x.ndim < 2: return x
    rubbish = x.new_full((len(x), 3, *x.shape[2:]), False if x.dtype == torch.bool else 2 if x.dtype == torch.long else 7.)
    return torch.cat([x, rubbish], 1)


@pytest.mark.parametrize('row', ROWS)
def test_row(row, folders, monkeypatch, tmp_path):
    one, rows, seen = trainings(row, folders[0], monkeypatch)
    model, data, loss = seen[-1]
    batch = data.collate(data.batches(0)[0])

    # it learns
    before = falls(model, loss, batch)
    assert np.isfinite(before).all() and before[-1] < before[0], before

    # its numbers have one form
    assert tuple(rows.columns) == TIDY and set(rows.row) == {row} and set(rows.config_hash) == {one.about} and 'test' in set(rows.split)
    assert rows.value.dropna().between(0, 1000).all() and not rows.duplicated(['split', 'metric']).any()

    # the same seed gives the same, elsewhere and after other draws
    torch.manual_seed(99)
    again = trainings(row, folders[1], monkeypatch)
    assert rows.drop(columns='versions').equals(again[1].drop(columns='versions'))
    for (a, *_), (b, *_) in zip(seen, again[2]):
        for (name, p), q in zip(a.state_dict().items(), b.state_dict().values()): assert torch.equal(p, q), name

    # weights survive a file
    save_checkpoint(tmp_path/'w.safetensors', model)
    other = copy.deepcopy(model).apply(shift)
    assert number(load_weights(other, tmp_path/'w.safetensors'), loss, batch) == number(model, loss, batch) != number(copy.deepcopy(other).apply(shift), loss, batch)

    # padding counts for nothing
    alone = replace(batch, taught=None) if hasattr(batch, 'taught') else batch # a teacher has spoken of the batch as it was
    assert number(model, loss, padded(alone)) == pytest.approx(number(model, loss, alone), rel=1e-5)


# --- the table of all rows ---

ROOT = Path(__file__).resolve().parents[1]

def tables(tmp_path, **parameters):
    "Rows, lines and verdicts of the notebook of the MCLS paper's tables."
    given = dict(out=str(tmp_path/'runs'), cache=str(ROOT/'results'), jobs=1)
    papermill.execute_notebook(ROOT/'nbs'/'run_table_mcls.ipynb', tmp_path/'table.ipynb', given | parameters, kernel_name='python3', progress_bar=False)
    return [pd.read_csv(tmp_path/'runs'/f'table-mcls-{parameters.get("preset", "small")}{part}.csv') for part in ('', '-table', '-verdicts')]

@pytest.mark.slow
def test_tables_from_what_is_committed(tmp_path):
    rows, lines, verdicts = tables(tmp_path, metrics='rouge1, rouge2, rougeL')
    assert not [p for p in (tmp_path/'runs').iterdir() if p.is_dir()] # nothing was trained
    assert set(lines[lines.seeds == 0].row) == {'VDF-TS-E2', 'VDF-TS-E3'} # layers that the preset has not
    lines = lines[lines.seeds > 0]
    assert lines.seeds.min() >= 3 and lines[['value', 'floor', 'ceiling']].notna().all(axis=None) and (lines.value <= lines.ceiling).all()
    assert set(lines.table) == set(verdicts.table) == {2, 3, 4, 5} and set(verdicts[verdicts.verdict == 'not run'].claim) == {c for c in verdicts.claim if 'E2' in c or 'E3' in c}

@pytest.mark.slow
def test_tables_from_nothing(tmp_path):
    rows, lines, verdicts = tables(tmp_path, preset='tiny', smoke=True, seeds=1, cache='')
    expected = {r for names in summaries.TABLES.values() for r in names if summaries.fits(ROWS[r], summaries.PRESETS['tiny'])}
    assert set(rows.row) == expected | {'Pipe-NCLS true En'}
    lines = lines[lines.seeds > 0]
    assert set(lines.row) == expected and lines.seeds.eq(1).all() and lines[['value', 'floor', 'ceiling']].notna().all(axis=None) and lines[lines.metric == 'rougeL'].paper.notna().all()
    assert set(verdicts[~verdicts.claim.str.contains('E2|E3')].verdict) == {'undecided'} # one seed decides nothing
    assert set(rows[rows.metric == 'translation bleu4'].row) == {'Pipe-NCLS', 'Pipe-HA', 'Pipe-MFFG', 'VDF (T+P+F)'}
    made = sorted(p.name[:10] for p in (tmp_path/'runs'/'teachers').iterdir() if p.is_dir())
    assert made == ['teacher-bo'] * 2 + ['teacher-te'] + ['translator'] * 2 # once for all rows

def test_hashes_of_finished_runs_stay():
    "Rows that are committed in results/ must be found again."
    for name in ('general', 'ablation', 'triple-stage', 'kd-layers'):
        rows = pd.read_csv(ROOT/'results'/f'{name}-small.csv', dtype=dict(config_hash=str))
        for row, seed, about in rows[['row', 'seed', 'config_hash']].drop_duplicates().itertuples(index=False): assert job(row, seed=seed).about == about, (name, row)
