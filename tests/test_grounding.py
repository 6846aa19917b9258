"Grounded summaries: one world for both halves, links and their truth, floors, and killed runs."
import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import papermill
import pytest

from mcls_nb.core import DataError
from mcls_nb.explain import MomentExplorer
from mcls_nb.finder import finder_of
from mcls_nb.grounding import (
    ANSWERS, GROUNDINGS, MEASURES, ROLES, Grounder, GroundingRun, by_answer, clauses, ground,
    grounding_links, grounding_scores, grounding_verdicts, knowable, main_scenes, recap,
    recap_corpora, scene_of)
from mcls_nb.papers.claims import item_difference
from mcls_nb.papers.presets import MOMENTS
from mcls_nb.papers.runs import sweep
from mcls_nb.papers.scores import TIDY, named
from mcls_nb.papers.systems import SYSTEMS
from mcls_nb.retrieve.encoders import MXML, XMLConfig
from mcls_nb.retrieve.recipes import SearchConfig
from mcls_nb.training import FitConfig
from mcls_nb.widgets import AttentionBrowser
from mcls_nb.worlds.tv import TVWorld, TVWorldConfig

ROOT = Path(__file__).resolve().parents[1]
SPLITS = ('train', 'val', 'test')
SMOKE = dict(system='VDF', preset='tiny', smoke=True)


@pytest.fixture(scope='module')
def world(): return TVWorld(TVWorldConfig(train=30, val=5, test=40))

@pytest.fixture(scope='module')
def corpora(world): return recap_corpora(world)

@pytest.fixture(scope='module')
def explorer(corpora):
    "Weights as they were drawn: links need no sense to be the same from both sides."
    films = corpora[1]
    sizes = dict(d_video=films.d_video, d_text=films.d_text)
    network = MXML(XMLConfig(d=32, heads=2, **sizes))
    finder = finder_of(dict.fromkeys(('en', 'zh'), network), films, SearchConfig(films.rule))
    return MomentExplorer(finder, films)

@pytest.fixture(scope='module')
def folder(tmp_path_factory): return tmp_path_factory.mktemp('runs')

@pytest.fixture(scope='module')
def result(folder): return GroundingRun(**SMOKE).result(folder)

def references(corpora, n=None):
    "(video, its true recap) of the first test videos."
    return [(r.id, r.summary) for r in corpora[0].splits['test'][:n]]


# --- one world

def test_the_same_world_twice(world, corpora):
    again, _ = recap_corpora(TVWorld(world.cfg, world.seed))
    other, _ = recap_corpora(TVWorld(world.cfg, 1))
    for s in SPLITS:
        mine, same, others = (texts.splits[s] for texts in (corpora[0], again, other))
        assert [vars(r) for r in mine] == [vars(r) for r in same]
        assert [r.summary for r in mine] != [r.summary for r in others]

def test_more_videos_do_not_change_those_that_are_there(world, corpora):
    more, _ = recap_corpora(TVWorld(replace(world.cfg, train=60)))
    few = corpora[0].splits['train']
    assert [r.summary for r in more.splits['train'][:30]] == [r.summary for r in few]

def test_splits_share_no_video_and_no_clause(corpora):
    splits = corpora[0].splits
    ids = {s: {r.id for r in splits[s]} for s in SPLITS}
    told = {s: {c for r in splits[s] for c in clauses(r.summary)} for s in SPLITS}
    for a, b in itertools.combinations(SPLITS, 2):
        assert not ids[a] & ids[b] and not told[a] & told[b]

def test_both_corpora_are_of_the_same_videos(world, corpora):
    texts, films = corpora
    for s in SPLITS:
        assert [r.id for r in texts.splits[s]] == list(films.durations[s])
        for r, v in zip(texts.splits[s], world.split(s)):
            assert texts.features[r.id] is v.video and films.video[r.id] is v.video
            spoken, first = r.transcripts['zh'], v.lines[0].texts['zh']
            assert set(r.transcripts) == {'en', 'zh'}
            assert ''.join(spoken.split()).startswith(''.join(first.split()))

def test_a_recap_tells_the_longest_scenes(world):
    for v in world.split('test'):
        told = main_scenes(v.scenes)
        length = [s.end - s.start for s in v.scenes]
        assert len(set(told)) == len(told) and 2 <= len(told) <= 3
        assert [length[k] for k in told] == sorted(length, reverse=True)[:len(told)]
        written = clauses(recap([v.scenes[k] for k in told]))
        assert [scene_of(c, v.scenes) for c in written] == [(k, 4) for k in told]

def test_what_can_be_known(world):
    found = knowable(world).set_index('role')
    assert list(found.index) == list(ROLES)
    assert found.transcript['action'] == 0 and (found.either <= 100).all()
    nothing_shown = TVWorld(TVWorldConfig(train=0, val=0, test=20, blind=True))
    blind = knowable(nothing_shown).set_index('role')
    assert (blind.frames == 0).all() and (blind.transcript == blind.either).all()


# --- clauses and scenes

@pytest.mark.parametrize('summary, parts', [
    ('', []), (' . ; ', []), ('one', ['one']), ('one ; two .', ['one', 'two']),
    ('one ;; two', ['one', 'two']), ('is it ? yes !', ['is it', 'yes']),
    ('  one   more  ; ', ['one more']), ('诺拉举起它；里奥看着。', ['诺拉举起它', '里奥看着'])], ids=str)
def test_clauses(summary, parts): assert clauses(summary) == parts

def test_a_clause_that_fits_two_scenes_or_none_has_no_moment(world):
    v = next(v for v in world.split('test') if len({s.who for s in v.scenes}) > 1)
    s = v.scenes[0]
    assert scene_of(f'{s.who} sleeps', v.scenes)[0] is None # one word is too little
    assert scene_of(recap([s]), [s, s]) == (None, 4) and scene_of('', v.scenes) == (None, 0)

def test_links_of_all_are_links_of_each(corpora, explorer):
    texts = references(corpora, 6)
    links = grounding_links(explorer, texts)
    for v, summary in texts:
        mine = links[links.video == v].reset_index()
        alone = ground(explorer, summary, v)
        columns = ['clause', 'start', 'end']
        pd.testing.assert_frame_equal(mine[columns], alone[columns])
        np.testing.assert_allclose(mine.score, alone.score, rtol=1e-4)
        for a in alone.itertuples():
            assert explorer.view(a.clause, 'en', v).span == (a.start, a.end)

def test_a_chinese_summary_is_linked_too(corpora, explorer):
    video = corpora[0].splits['test'][0].id
    found = ground(explorer, '诺拉举起手提箱；里奥看着。', video, 'zh')
    spans = [explorer.view(c, 'zh', video).span for c in found.clause]
    assert spans == list(zip(found.start, found.end))


# --- floor, ceiling, controls

def test_order_of_answers(world, corpora, explorer):
    links = grounding_links(explorer, references(corpora))
    for m in MEASURES:
        for a in ('linked', 'random'): assert (links[f'{a} {m}'] <= links[f'best {m}']).all()
        means = links[[f'{a} {m}' for a in ANSWERS]].mean()
        assert means[f'random {m}'] < means[f'place {m}'] < means[f'best {m}'], m
    for a in ANSWERS: assert (links[f'{a} IoU=0.5'] <= links[f'{a} IoU=0.3']).all()
    scores = grounding_scores(links, world)
    assert scores['fit'] == scores['told'] == scores['right words'] == 100.

def test_what_fits_nothing_is_a_miss_even_for_the_ceiling(world, corpora, explorer):
    (first, _), *others = references(corpora, 4)
    links = grounding_links(explorer, [(first, 'somebody sleeps .'), *others])
    lost = links[links.video == first]
    values = lost[[f'{a} {m}' for a in ANSWERS for m in MEASURES]].to_numpy()
    assert list(lost.scene) == [-1] and values.sum() == 0 and lost.true_start.isna().all()
    scores = grounding_scores(links, world)
    assert scores['fit'] == pytest.approx(100 * (1 - 1 / len(links)))
    assert scores['best IoU=0.3'] <= scores['fit']

def test_a_summary_without_clauses_counts_nowhere(world, corpora, explorer):
    first, (silent, _), last = references(corpora, 3)
    links = grounding_links(explorer, [first, (silent, ''), last])
    assert set(links.video) == {first[0], last[0]}
    with pytest.raises(DataError, match='no summary holds a clause'):
        grounding_links(explorer, [(v, '.') for v, _ in references(corpora, 3)])

@pytest.mark.slow
def test_a_trained_finder_beats_chance_and_the_wrong_video():
    world = TVWorld(TVWorldConfig(train=400, val=10, test=60, time_scale=.3, d_latent=64))
    corpora = texts, films = recap_corpora(world)
    fit = FitConfig(epochs=8, lr=3e-3, clip=1., monitor='VCMR')
    sizes = replace(MOMENTS['tiny'], training=replace(MOMENTS['tiny'].training, fit=fit))
    system = SYSTEMS['mXML']
    finder = system.product(system.follow(films, sizes), sizes)
    links = grounding_links(MomentExplorer(finder, films), references(corpora))
    scores = grounding_scores(links, world)
    chance = max(scores[f'{a} IoU=0.5'] for a in ('random', 'another'))
    assert scores['linked IoU=0.5'] > 1.5 * chance


# --- runs

def test_a_run_and_its_rows(folder, result):
    assert tuple(result.rows.columns) == TIDY and result.rows.value.between(0, 100).all()
    rows = GroundingRun(**SMOKE | dict(system='reference')).rows(folder)
    value = dict(zip(named(rows).name, rows.value))
    assert value['fit'] == 100 and value['best IoU=0.5'] > value['random IoU=0.5']
    found = grounding_verdicts(pd.concat([rows, result.rows]))
    assert len(found) == 8 and set(found.verdict) == {'undecided'} # one seed
    links, items = result.scores, result.run.item_scores('linked IoU', folder)
    mine = links[links.video == links.video[0]]
    assert items[links.video[0]] == pytest.approx(100 * mine['linked IoU'].mean())

def test_rows_are_read_again_and_swept_like_any_other(folder, result):
    other = GroundingRun(**SMOKE | dict(system='reference'))
    rows = sweep([result.run, other], folder, workers=1)
    mine = rows[rows.run == result.run.name]
    pd.testing.assert_frame_equal(mine, result.rows, check_exact=True)
    found = item_difference([other], [result.run], 'linked IoU=0.5', folder)
    assert found['claim'] == 'reference > VDF' and found['items'] == 6
    names = {f'{s}, {a}' for s in ('VDF', 'reference') for a in ANSWERS}
    assert set(by_answer(rows).system) == names

def test_a_summary_that_says_nothing_scores_nothing(folder, result, tmp_path):
    links = result.scores[result.scores.video != result.scores.video[0]]
    links.to_csv(tmp_path/'links.csv', index=False)
    summaries = pd.read_csv(result.folder/'summaries.csv', keep_default_na=False)
    summaries.to_csv(tmp_path/'summaries.csv', index=False)
    line = next(r for r in named(result.rows).itertuples() if r.name == 'best IoU')
    items = result.run.of.item_scores(tmp_path, line)
    assert list(items.index) == list(summaries.id) and items[result.scores.video[0]] == 0.

@pytest.mark.parametrize('fields, says', [
    (dict(system='VDV'), "did you mean 'VDF'"), (dict(preset='full'), "no preset 'full'"),
    (dict(epochs=0), '0 epochs are none'), (dict(data='nowhere'), 'generated world alone'),
    (dict(world=dict(trian=5)), "did you mean 'train'"),
    (dict(world=dict(see=2.)), 'not a probability'),
    (dict(samples=5), 'no such parameter'), (dict(rule=dict(clip=1.)), 'no such parameter'),
    (dict(network=dict(deep=3)), "no parameter 'deep'")], ids=str)
def test_what_cannot_be_run_is_refused(tmp_path, fields, says):
    with pytest.raises(DataError, match=says): GroundingRun(**SMOKE | fields).rows(tmp_path)

@pytest.mark.parametrize('change, says', [
    (dict(summary=''), 'holds no clause'), (dict(summary=' ; . '), 'holds no clause'),
    (dict(video='nowhere'), "no video 'nowhere'"),
    (dict(language='pt'), "no language 'pt'")], ids=str)
def test_what_cannot_be_linked_is_refused(corpora, explorer, change, says):
    video = corpora[0].splits['test'][0].id
    given = dict(summary='Nora lifts the hat', video=video, language='en')
    with pytest.raises(DataError, match=says): ground(explorer, **given | change)

def test_presets_give_both_halves_one_world():
    for preset in GROUNDINGS.values():
        changed = preset.changed(epochs=2, see=.5)
        assert changed.moments.world == changed.world == replace(preset.world, see=.5)
        assert changed.summary.fits.train.epochs == changed.moments.training.fit.epochs == 2

CODE = '''
import sys
from mcls_nb.grounding import GroundingRun
GroundingRun("VDF", "tiny", 3).rows(sys.argv[1])'''

@pytest.mark.slow
def test_killed_and_started_again(undisturbed):
    "SIGKILL while the writer learns and while the finder does; then what an undisturbed run gives."
    blows = [('recap-vdf-*/train/history.csv', 1), ('models/*/history.csv', 1)]
    undisturbed(CODE, blows, ('recap-vdf-*/rows.csv', 'recap-vdf-*/links.csv'))

@pytest.mark.slow
def test_the_notebook(tmp_path):
    out = tmp_path/'runs'
    given = dict(preset='tiny', smoke=True, seeds=1, jobs=1, out=str(out))
    papermill.execute_notebook(ROOT/'nbs'/'run_grounding.ipynb', tmp_path/'done.ipynb', given,
                               kernel_name='python3', progress_bar=False)
    assert set(pd.read_csv(out/'grounding-tiny.csv').system) == {'VDF', 'NCLS', 'reference'}
    verdicts = pd.read_csv(out/'grounding-tiny-verdicts.csv').verdict
    assert set(verdicts) <= {'holds', 'does not hold', 'undecided'}
    assert (tmp_path/'done.ipynb').stat().st_size < 1_000_000


# --- the widget

class Writer:
    "Writes the true recaps, and has looked anywhere."
    def __init__(self, records): self.records, self.labels = records, [r.id for r in records]
    def view(self, i):
        words = tuple(self.records[i].summary.split()) + ('<eos>',)
        cross = np.random.default_rng(i).dirichlet(np.ones(3), (1, 2, len(words)))
        return SimpleNamespace(
            id=self.labels[i], reference=self.records[i].summary, reads='transcript word',
            words=words, source=tuple('abc'), span=1.5, cross=cross, video=None,
            gate_attention=None, gate=None)

def bands(browser):
    "What the figure of the moment marks: name -> (start, end)."
    shapes = browser.figs['moment'].layout.shapes
    return {s.name: (s.x0, s.x1) for s in shapes if s.visible}

def test_the_curve_is_that_of_the_chosen_clause(corpora, explorer):
    writer = Writer(corpora[0].splits['test'][:3])
    grounder = Grounder(explorer, writer.labels)
    browser = AttentionBrowser({'true': writer}, ground=grounder)
    for sample in (0, 2):
        browser.sample.value = sample
        links = grounder(sample, writer.records[sample].summary)
        for k, (view, truth) in reversed(list(enumerate(links))):
            browser.clause.value = k
            traces = browser.figs['moment'].data
            mean = next(t for t in traces if (t.name, t.yaxis) == ('mean', 'y2'))
            np.testing.assert_allclose(mean.y, view.curves.mean(0), atol=1e-6)
            assert bands(browser) == {'predicted': view.span, 'true': truth}
            assert f'<u><b>{view.query}' in browser.told.value
            assert view.query in browser.figure('moment').layout.title.text

def test_without_links_there_is_no_panel(corpora):
    writer = Writer(corpora[0].splits['test'][:3])
    silent = lambda i, summary: []
    browsers = AttentionBrowser({'true': writer}), AttentionBrowser({'true': writer}, ground=silent)
    for browser in browsers:
        for part in (browser.slots['moment'], browser.clause): assert part.layout.display == 'none'
        assert not browser.told.value
        with pytest.raises(DataError, match='no such part'): browser.figure('moment')
