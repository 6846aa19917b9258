"Grounded summaries: one world for both halves, links and their truth, floors and ceilings, and runs that are killed."
import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import papermill
import pytest

from mcls_nb.core import DataError
from mcls_nb.papers.scores import TIDY
from mcls_nb.explain import MomentExplorer
from mcls_nb.grounding import (ANSWERS, MEASURES, ROLES, Grounder, GroundingJob, clauses, ground, grounding_links, grounding_scores, grounding_verdicts, knowable, main_scenes,
                               recap, recap_corpora, run_job, scene_of)
from mcls_nb.retrieve import rows as moments
from mcls_nb.retrieve.encoders import MXML, XMLConfig
from mcls_nb.runs import run
from mcls_nb.widgets import AttentionBrowser
from mcls_nb.worlds.tv import TVWorld, TVWorldConfig

ROOT = Path(__file__).resolve().parents[1]
SPLITS = ('train', 'val', 'test')
JOB = dict(preset='tiny', smoke=True)


@pytest.fixture(scope='module')
def world(): return TVWorld(TVWorldConfig(train=30, val=5, test=40))

@pytest.fixture(scope='module')
def corpora(world): return recap_corpora(world)

@pytest.fixture(scope='module')
def finder(corpora):
    "Weights as they were drawn: links need no sense to be the same from both sides."
    model = MXML(XMLConfig(d=32, heads=2, d_video=corpora[1].d_video, d_text=corpora[1].d_text)).eval()
    return MomentExplorer({'en': model, 'zh': model}, corpora[1])

@pytest.fixture(scope='module')
def folder(tmp_path_factory): return tmp_path_factory.mktemp('runs')

@pytest.fixture(scope='module')
def result(folder): return run_job(GroundingJob('VDF', **JOB), folder)


# --- one world

def test_the_same_world_twice(world, corpora):
    again = recap_corpora(TVWorld(world.cfg, world.seed))
    other = recap_corpora(TVWorld(world.cfg, 1))
    for s in SPLITS:
        assert [(r.id, r.transcripts, r.summary) for r in corpora[0].splits[s]] == [(r.id, r.transcripts, r.summary) for r in again[0].splits[s]]
        assert [r.summary for r in corpora[0].splits[s]] != [r.summary for r in other[0].splits[s]]

def test_more_videos_do_not_change_those_that_are_there(world, corpora):
    more = recap_corpora(TVWorld(TVWorldConfig(train=60, val=5, test=40)))
    assert [r.summary for r in more[0].splits['train'][:30]] == [r.summary for r in corpora[0].splits['train']]

def test_splits_share_no_video_and_no_clause(corpora):
    ids = {s: {r.id for r in corpora[0].splits[s]} for s in SPLITS}
    said = {s: {c for r in corpora[0].splits[s] for c in clauses(r.summary)} for s in SPLITS}
    for a, b in itertools.combinations(SPLITS, 2): assert not ids[a] & ids[b] and not said[a] & said[b]

def test_both_corpora_are_of_the_same_videos(world, corpora):
    texts, films = corpora
    for s in SPLITS:
        assert [r.id for r in texts.splits[s]] == list(films.durations[s])
        for r, v in zip(texts.splits[s], world.split(s)):
            assert texts.features[r.id] is v.video and films.video[r.id] is v.video
            assert set(r.transcripts) == {'en', 'zh'} and ''.join(r.transcripts['zh'].split()).startswith(''.join(v.lines[0].texts['zh'].split()))

def test_a_recap_tells_the_longest_scenes(world):
    for v in world.split('test'):
        told = main_scenes(v.scenes)
        length = [s.end - s.start for s in v.scenes]
        assert len(set(told)) == len(told) and 2 <= len(told) <= 3
        assert [length[k] for k in told] == sorted(length, reverse=True)[:len(told)]
        assert [scene_of(c, v.scenes) for c in clauses(recap([v.scenes[k] for k in told]))] == [(k, 4) for k in told]

def test_what_can_be_known(world):
    found = knowable(world).set_index('role')
    assert list(found.index) == list(ROLES) and found.transcript['action'] == 0 and (found.either <= 100).all()
    blind = knowable(TVWorld(TVWorldConfig(train=0, val=0, test=20, blind=True))).set_index('role')
    assert (blind.frames == 0).all() and (blind.transcript == blind.either).all()


# --- clauses and scenes

@pytest.mark.parametrize('summary, parts', [
    ('', []), (' . ; ', []), ('one', ['one']), ('one ; two .', ['one', 'two']), ('one ;; two', ['one', 'two']), ('is it ? yes !', ['is it', 'yes']),
    ('  one   more  ; ', ['one more']), ('诺拉举起它；里奥看着。', ['诺拉举起它', '里奥看着'])], ids=str)
def test_clauses(summary, parts): assert clauses(summary) == parts

def test_a_clause_that_fits_two_scenes_or_none_has_no_moment(world):
    v = next(v for v in world.split('test') if len({s.who for s in v.scenes}) > 1)
    s = v.scenes[0]
    assert scene_of(f'{s.who} sleeps', v.scenes)[0] is None # one word is too little
    assert scene_of(recap([s]), [s, s]) == (None, 4) and scene_of('', v.scenes) == (None, 0)

def test_links_of_all_are_links_of_each(corpora, finder):
    texts = [(r.id, r.summary) for r in corpora[0].splits['test'][:6]]
    links = grounding_links(finder, texts)
    for v, summary in texts:
        mine = links[links.video == v].reset_index()
        alone = ground(finder, summary, v)
        pd.testing.assert_frame_equal(mine[['clause', 'start', 'end']], alone[['clause', 'start', 'end']])
        np.testing.assert_allclose(mine.score, alone.score, rtol=1e-4)
        for a in alone.itertuples(): assert finder.view(a.clause, 'en', v).span == (a.start, a.end)

def test_a_chinese_summary_is_linked_too(corpora, finder):
    video = corpora[0].splits['test'][0].id
    found = ground(finder, '诺拉举起手提箱；里奥看着。', video, 'zh')
    assert [finder.view(a.clause, 'zh', video).span for a in found.itertuples()] == [(a.start, a.end) for a in found.itertuples()]


# --- floor, ceiling, controls

def test_order_of_answers(world, corpora, finder):
    links = grounding_links(finder, [(r.id, r.summary) for r in corpora[0].splits['test']])
    for m in MEASURES:
        assert (links[f'linked {m}'] <= links[f'best {m}']).all() and (links[f'random {m}'] <= links[f'best {m}']).all()
        means = links[[f'{a} {m}' for a in ANSWERS]].mean()
        assert means[f'random {m}'] < means[f'place {m}'] < means[f'best {m}'], m
    for a in ANSWERS: assert (links[f'{a} IoU=0.5'] <= links[f'{a} IoU=0.3']).all()
    scores = grounding_scores(links, world)
    assert scores['fit'] == scores['told'] == scores['right words'] == 100.

def test_what_fits_nothing_is_a_miss_even_for_the_ceiling(world, corpora, finder):
    records = corpora[0].splits['test'][:4]
    links = grounding_links(finder, [(r.id, r.summary if k else 'somebody sleeps .') for k, r in enumerate(records)])
    lost = links[links.video == records[0].id]
    assert list(lost.scene) == [-1] and lost[[f'{a} {m}' for a in ANSWERS for m in MEASURES]].to_numpy().sum() == 0 and lost.true_start.isna().all()
    scores = grounding_scores(links, world)
    assert scores['fit'] == pytest.approx(100 * (1 - 1 / len(links))) and scores['best IoU=0.3'] <= scores['fit']

def test_a_summary_without_clauses_counts_nowhere(world, corpora, finder):
    records = corpora[0].splits['test'][:3]
    links = grounding_links(finder, [(r.id, '' if k == 1 else r.summary) for k, r in enumerate(records)])
    assert set(links.video) == {records[0].id, records[2].id}
    with pytest.raises(DataError, match='no summary holds a clause'): grounding_links(finder, [(r.id, '.') for r in records])

@pytest.mark.slow
def test_a_trained_finder_beats_chance_and_the_wrong_video():
    world = TVWorld(TVWorldConfig(train=400, val=10, test=60, time_scale=.3, d_latent=64))
    texts, films = recap_corpora(world)
    p = moments.PRESETS['tiny']
    model = moments.train(moments.ROWS['mXML'], type(p)(p.world, p.model, type(p.fit)(epochs=8, lr=3e-3, clip=1., monitor='VCMR'), threads=1), films).models['en'].eval()
    scores = grounding_scores(grounding_links(MomentExplorer({'en': model}, films), [(r.id, r.summary) for r in texts.splits['test']]), world)
    assert scores['linked IoU=0.5'] > 1.5 * max(scores[f'{a} IoU=0.5'] for a in ('random', 'another'))


# --- runs

def test_a_run_and_its_rows(folder, result):
    assert tuple(result.rows.columns) == TIDY and result.rows.value.between(0, 100).all()
    rows = run(GroundingJob('reference', **JOB), folder)
    value = dict(zip(rows.metric, rows.value))
    assert value['fit'] == 100 and value['best IoU=0.5'] > value['random IoU=0.5']
    found = grounding_verdicts(pd.concat([rows, result.rows]))
    assert len(found) == 8 and set(found.verdict) == {'undecided'} # one seed
    job = GroundingJob('VDF', **JOB)
    links = result.links
    items = job.item_scores(folder, 'linked IoU')
    assert items[links.video[0]] == pytest.approx(100 * links[links.video == links.video[0]]['linked IoU'].mean())

@pytest.mark.parametrize('job, says', [
    (dict(row='VDV'), "did you mean 'VDF'"), (dict(preset='full'), "no preset 'full'"), (dict(epochs=0), '0 epochs are none'), (dict(data='nowhere'), 'generated world alone'),
    (dict(world=dict(trian=5)), "did you mean 'train'"), (dict(world=dict(see=2.)), 'not a probability')], ids=str)
def test_what_cannot_be_run_is_refused(tmp_path, job, says):
    with pytest.raises(DataError, match=says): run(GroundingJob(**JOB | job), tmp_path)

@pytest.mark.parametrize('change, says', [
    (dict(summary=''), 'holds no clause'), (dict(summary=' ; . '), 'holds no clause'), (dict(video='nowhere'), "no video 'nowhere'"), (dict(language='pt'), "no language 'pt'")], ids=str)
def test_what_cannot_be_linked_is_refused(corpora, finder, change, says):
    given = dict(summary='Nora lifts the hat', video=corpora[0].splits['test'][0].id, language='en')
    with pytest.raises(DataError, match=says): ground(finder, **given | change)

CODE = 'import sys; from mcls_nb.grounding import GroundingJob; from mcls_nb.runs import run; run(GroundingJob("VDF", "tiny", 3), sys.argv[1])'

@pytest.mark.slow
def test_killed_and_started_again(undisturbed):
    "SIGKILL while the summariser learns and while the finder does; then byte for byte what an undisturbed run gives."
    undisturbed(CODE, [('vdf-*/train/history.csv', 1), ('models/*/history.csv', 1)], ('vdf-*/rows.csv', 'vdf-*/links.csv'))

@pytest.mark.slow
def test_the_notebook(tmp_path):
    given = dict(preset='tiny', smoke=True, seeds=1, jobs=1, out=str(tmp_path/'runs'))
    papermill.execute_notebook(ROOT/'nbs'/'run_grounding.ipynb', tmp_path/'done.ipynb', given, kernel_name='python3', progress_bar=False)
    assert set(pd.read_csv(tmp_path/'runs'/'grounding-tiny.csv').row) == {'VDF', 'NCLS', 'reference'}
    assert set(pd.read_csv(tmp_path/'runs'/'grounding-tiny-verdicts.csv').verdict) <= {'holds', 'does not hold', 'undecided'}
    assert (tmp_path/'done.ipynb').stat().st_size < 1_000_000


# --- the widget

class Writer:
    "Writes the true recaps, and has looked anywhere."
    def __init__(self, records): self.records, self.labels = records, [r.id for r in records]
    def view(self, i):
        rng, words = np.random.default_rng(i), tuple(self.records[i].summary.split()) + ('<eos>',)
        return SimpleNamespace(id=self.labels[i], reference=self.records[i].summary, reads='transcript word', words=words, source=tuple('abc'), span=1.5, cross=rng.dirichlet(np.ones(3), (1, 2, len(words))),
                               video=None, gate_attention=None, gate=None)

def bands(browser): return {s.name: (s.x0, s.x1) for s in browser.figs['moment'].layout.shapes if s.visible}

def test_the_curve_is_that_of_the_chosen_clause(corpora, finder):
    writer = Writer(corpora[0].splits['test'][:3])
    grounder = Grounder(finder, writer.labels)
    browser = AttentionBrowser({'true': writer}, ground=grounder)
    for sample in (0, 2):
        browser.sample.value = sample
        for k, (view, truth) in reversed(list(enumerate(grounder(sample, writer.records[sample].summary)))):
            browser.clause.value = k
            mean = next(t for t in browser.figs['moment'].data if (t.name, t.yaxis) == ('mean', 'y2'))
            np.testing.assert_allclose(mean.y, view.curves.mean(0), atol=1e-6)
            assert bands(browser) == {'predicted': view.span, 'true': truth}
            assert f'<u><b>{view.query}' in browser.told.value and view.query in browser.figure('moment').layout.title.text

def test_without_links_there_is_no_panel(corpora, finder):
    writer = Writer(corpora[0].splits['test'][:3])
    for browser in (AttentionBrowser({'true': writer}), AttentionBrowser({'true': writer}, ground=lambda i, summary: [])):
        assert browser.slots['moment'].layout.display == browser.clause.layout.display == 'none' and not browser.told.value
        with pytest.raises(DataError, match='no such part'): browser.figure('moment')
