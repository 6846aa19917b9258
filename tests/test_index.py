"""Moment search: the released code's lists, the oracle on ragged corpora, indices on disk, and
what users get wrong.

tests/fixtures/mtvr holds arrays that the released code wrote."""
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from helpers import refused
from mcls_nb.retrieve import index as moment_index
from mcls_nb.retrieve.data import VideoBatch
from mcls_nb.retrieve.encoders import XMLConfig, xml_from_reference
from mcls_nb.retrieve.index import MomentIndex, edge_log_probabilities
from mcls_nb.retrieve.packing import PACKED_ROWS, allocate
from mcls_nb.retrieve.scoring import Queries
from mcls_nb.retrieve.spans import (RELEASED_SPANS, Ranking, SpanRule, naive_search, rank_spans,
                                    temporal_nms)
from oracles import all_scores, loud, noise, same

HERE = Path(__file__).parent
FIXTURES = HERE/'fixtures'/'mtvr'
ALL = ('VCMR', 'SVMR', 'VR')
MEAN, SUM = (dict(rule=SpanRule(), alpha=a, merge=m) for a, m in ((20., 'mean'), (10., 'sum')))
FAISS = 'FAISS is an optional dependency: pip install "mcls_nb[faiss]"'


def arrays(name):
    with np.load(FIXTURES/f'{name}.npz') as f:
        return {k: torch.from_numpy(np.asarray(v)) for k, v in f.items()}

def ask(model, n, seed=0):
    x = torch.randn(n, 7, 5, generator=torch.Generator().manual_seed(seed))
    return model.encode_queries(x, torch.ones(n, 7, dtype=bool), 'en')

def equal(a, b, atol=3e-5):
    "Two rankings agree up to near ties."
    np.testing.assert_allclose(a.score, b.score, rtol=0, atol=atol)
    assert ((a.video == b.video) & ((a.start == b.start) | (a.video < 0))).mean() > .99

# --- the released code's lists

def listed(found, fixture):
    "Equal to rows of video, start, end, score, but for places that near ties have swapped."
    mine, due = np.stack(found, -1), fixture.numpy()
    np.testing.assert_allclose(mine[..., 3], due[..., 3], rtol=3e-5)
    for i, j in zip(*np.nonzero((mine[..., :3] != due[..., :3]).any(-1))):
        twin = np.flatnonzero((due[i, :, :3] == mine[i, j, :3]).all(-1))
        def tied(k): return abs(due[i, k, 3] / mine[i, j, 3] - 1) < 3e-5
        assert tied(-1) or len(twin) == 1 and tied(twin[0]) # the last one's twin may be unlisted

@pytest.fixture(params=['small', 'real_dims'])
def released(request):
    g = arrays(f'g_inference_{request.param}')
    p_st, p_ed = (g[f'{edge}_logits'].softmax(-1) for edge in ('st', 'ed'))
    return SimpleNamespace(**g, p_st=p_st, p_ed=p_ed, many=int(g['max_n_videos']))

def test_oracle_writes_the_released_lists(released):
    g = released
    edges = g.p_st, g.p_ed
    due = naive_search(g.video_scores, *edges, 200, RELEASED_SPANS, g.gt_video_row, g.many)
    score, video, start, end = due['VCMR']
    listed((g.video_idx[video], start, end, score), g.vcmr)
    score, video = due['VR']
    none = torch.zeros(len(video), g.many)
    listed((g.video_idx[video[:, :g.many]], none, none, score[:, :g.many]), g.vr)
    score, video, start, end = due['SVMR']
    for i, n in enumerate(g.svmr_n_valid.tolist()): # illegal spans follow in an undefined order
        mine = [x[None, i, :n] for x in (g.video_idx[video], start, end, score)]
        listed(mine, g.svmr[None, i, :n])
        assert score[i, n:].isnan().all()

def spans_of(g, k):
    "VCMR and SVMR lists by `rank_spans`, as rankings of rows of the fixture."
    s, v = g.video_scores.topk(g.many)
    rows, own = torch.arange(len(v))[:, None], g.gt_video_row[:, None]
    for video, weight in ((v, 20 * s), (own, None)):
        edges = g.p_st[rows, video].log(), g.p_ed[rows, video].log()
        score, slot, st, ed = rank_spans(*edges, weight, k, RELEASED_SPANS)
        none, (start, end) = (slot < 0).numpy(), RELEASED_SPANS.seconds(st, ed)
        name = g.video_idx[video.gather(1, slot.clamp(min=0))].numpy()
        start, end = (np.where(none, np.nan, x) for x in (start, end))
        yield Ranking(np.where(none, -1, name), start, end, score.exp().numpy()) # as released

def columns(r): return r.video, r.start, r.end, r.score

def test_rank_spans_writes_the_released_lists(released):
    g = released
    vcmr, svmr = spans_of(g, 200)
    listed(columns(vcmr), g.vcmr)
    for i, n in enumerate(g.svmr_n_valid.tolist()):
        listed([x[None, i, :n] for x in columns(svmr)], g.svmr[None, i, :n])
        assert (svmr.video[i, n:] == -1).all() and np.isnan(svmr.score[i, n:]).all()

def test_nms_of_the_released_lists(released):
    g = released
    (wide, _), (vcmr, svmr) = spans_of(g, 200), spans_of(g, 100) # released: cut to 100 before
    found = dict(vcmr_nms05_from200=temporal_nms(wide, .5, 100),
                 vcmr_nms05_from100=temporal_nms(vcmr, .5),
                 svmr_nms05_fixed_valid_only=temporal_nms(svmr, .5))
    for name, r in found.items():
        due, missing = getattr(g, name).numpy(), r.video < 0
        np.testing.assert_array_equal(np.isnan(due[..., 3]), missing)
        np.testing.assert_allclose(r.score, due[..., 3], rtol=3e-5)
        mine = np.stack(columns(r)[:3], -1)
        np.testing.assert_array_equal(mine[~missing], due[..., :3][~missing])

CUTS = [('0.3', .3, None), ('0.5', .5, None), ('0.7', .7, None), ('0.5_max5', .5, 5)]

@pytest.mark.parametrize('name, threshold, k', CUTS)
def test_nms_alone(name, threshold, k):
    f = arrays('i_misc')
    spans = f['nms_in'][f['nms_in'][:, 2].sort(descending=True, stable=True).indices].numpy()
    found = temporal_nms(Ranking(np.zeros((1, 60), int), *(c[None] for c in spans.T)), threshold, k)
    n = (found.video >= 0).sum()
    mine = np.stack([found.start, found.end, found.score], -1)[0, :n]
    np.testing.assert_array_equal(mine, f[f'nms_out_thd{name}'].numpy())

@pytest.mark.parametrize('l, low, high', [(8, 2, 5), (20, 2, 16)])
def test_band_is_the_released_mask(l, low, high):
    rule = SpanRule(end_rule='released', min_clips=low + 1, max_clips=high)
    _, _, st, ed = rank_spans(*(torch.zeros(1, 1, l),) * 2, k=l * l, rule=rule)
    mask = np.zeros((l, l))
    mask[st[st >= 0], ed[st >= 0]] = 1
    due = arrays('i_misc')[f'min_max_mask_L{l}_{low}_{high}']
    np.testing.assert_array_equal(mask, due.numpy())

class Five(SimpleNamespace):
    "The five videos of the fixture, as a `VideoSet`."
    def __len__(self): return 5

def five(x, language):
    "With canonical padding, which three of the five have in the fixture."
    video, sub, mask = (x[f'{language}.{n}'] for n in ('video_feat', 'sub_feat', 'video_mask'))
    lengths, names = mask.sum(1).int().numpy(), [f'v{i}' for i in range(5)]
    video, sub = (F.pad(a, (0, 0, 0, 2)) for a in (video, sub)) # they end with the longest video
    mask = F.pad(mask, (0, 2)).bool()
    def collate(indices):
        l = int(lengths[indices].max()) + 2
        rows = [a[indices, :l] for a in (video, sub, mask)]
        return VideoBatch([names[i] for i in indices], rows[0], {language: rows[1]}, rows[2])
    return Five(names=names, lengths=lengths, durations=1.5 * lengths, collate=collate)

def test_index_of_released_weights():
    "Video scores and curves of all pairs, encoded and packed by us."
    cfg = XMLConfig(d_video=24, d_text=20, d=16, heads=2, max_clips=14, max_words=9)
    model, x = xml_from_reference(arrays('weights_mxml'), cfg), arrays('inputs')
    scores, logits = arrays('d_video_scores'), arrays('e_st_ed')
    for language in cfg.languages:
        index = MomentIndex.build(model, five(x, language), language)
        words, mask = x[f'{language}.query_feat'], x[f'{language}.query_mask'].bool()
        q = model.encode_queries(words, mask, language)
        r = index.search(q, 'VR', k=5, **MEAN)
        due = scores[f'{language}.merged_scores'].numpy()
        due = np.take_along_axis(due, r.video, 1)
        np.testing.assert_allclose(r.score / 20, due, atol=1e-5)
        query, slots = torch.cat([q.video_clip, q.sub_clip], -1) / 2, torch.arange(5).expand(5, 5)
        with torch.no_grad(): p = edge_log_probabilities(index, query, slots).exp() # q v 2 l
        few = torch.from_numpy(index.numbers) != 0 # the longest has no padding in the fixture
        for i, edge in enumerate(('st', 'ed')):
            due = logits[f'{language}.{edge}_logits_cross'].softmax(-1)[:, index.numbers]
            np.testing.assert_allclose(p[:, few, i], due[:, few], atol=2e-5)


# --- the same lists as the oracle's

CORPORA = { # lengths
    'ragged': lambda rng: rng.integers(1, 41, 130),
    'short with a few long': lambda rng: np.r_[rng.integers(1, 6, 200), [40, 39, 38]],
    'all alike': lambda rng: np.r_[[17] * 120, rng.integers(1, 41, 5)]}
RULES = dict(consistent=SpanRule(), released=RELEASED_SPANS,
             long=SpanRule(min_clips=4, max_clips=40))

@pytest.mark.parametrize('rule', RULES.values(), ids=RULES)
@pytest.mark.parametrize('seed, corpus', list(enumerate(CORPORA)))
def test_top_100_are_the_oracles(seed, corpus, rule):
    rng = np.random.default_rng(seed)
    model, videos = loud(seed), noise(CORPORA[corpus](rng), seed)
    queries, own = ask(model, 40, seed), torch.from_numpy(rng.integers(0, len(videos), 40))
    how = dict(MEAN, rule=rule, batch=17)
    found = MomentIndex.build(model, videos).search(queries, ALL, own=own, **how)
    s, a, e = all_scores(model, videos, queries)
    due, extra = naive_search(s, a, e, 100, rule, own), int(rule.end_rule == 'released')
    def span(q, v, i, j): return a[q, v, int(i / 1.5)] * e[q, v, int(j / 1.5) - extra]
    def video(q, v, i, j): return (20 * s[q, v]).exp()
    def both(*answer): return video(*answer) * span(*answer)
    for task, score in dict(VCMR=both, SVMR=span, VR=video).items():
        assert same(found[task], due[task], score) > .99
    assert not found['VR'].start.any() and all(r.score.shape == (40, 100) for r in found.values())

def test_tasks_alone_answer_as_together():
    model, videos = loud(), noise([3, 9, 30, 4, 1, 12])
    index, queries = MomentIndex.build(model, videos), ask(model, 9)
    how = dict(MEAN, own=torch.tensor([0, 5, 2] * 3), k=20, max_videos=4)
    together = index.search(queries, ALL, **how)
    for task in ALL:
        alone = columns(index.search(queries, task, **how))
        for x, y in zip(alone, columns(together[task])): np.testing.assert_allclose(x, y, rtol=1e-5)

def test_sum_of_streams():
    model, videos = loud(), noise(np.random.default_rng(0).integers(2, 41, 50))
    queries, index = ask(model, 20), MomentIndex.build(model, videos)
    s, a, e = all_scores(model, videos, queries, 'sum')
    due = naive_search(s, a, e, alpha=10.)['VCMR']
    def score(q, v, i, j):
        return (10 * s[q, v]).exp() * a[q, v, int(i / 1.5)] * e[q, v, int(j / 1.5)]
    assert same(index.search(queries, **SUM), due, score) > .99
    equal(index.search(queries, 'VR', **MEAN), index.search(queries, 'VR', **SUM))

@pytest.mark.parametrize('name', ['rule', 'alpha', 'merge'])
def test_what_belongs_to_the_model_has_no_default(index, name):
    some = {k: v for k, v in MEAN.items() if k != name}
    with pytest.raises(TypeError, match=name): index.search(ask(loud(), 3), **some)

def test_many_videos_stream_by():
    "More than the 4,096 that are ranked at once, in two parts."
    rng = np.random.default_rng(0)
    def part(n, first):
        p = allocate(np.sort(rng.integers(1, 4, n)), first + rng.permutation(n), 8, 2)
        for f in PACKED_ROWS:
            rows = torch.from_numpy(rng.normal(size=getattr(p, f).shape))
            getattr(p, f).copy_(F.normalize(rows, dim=-1))
        return p
    parts, names = [part(9000, 0), part(300, 9000)], [str(i) for i in range(9300)]
    index = MomentIndex(parts, names, [1.] * 9300, 'en', torch.ones(2, 1, 5), '', {})
    queries = Queries(*(torch.randn(5, 8) for _ in range(4)))
    video, sub = (F.normalize(x, dim=-1) for x in (queries.video, queries.sub))
    due = torch.empty(5, 9300)
    for p in index.parts:
        for a, l, n in zip(p.ends, p.lengths, p.numbers):
            best = [(q @ x[a:a + l].T).amax(1) for q, x in ((video, p.video), (sub, p.sub))]
            due[:, n] = sum(best) / 2
    score, video = due.topk(150)
    found = index.search(queries, 'VR', k=150, **MEAN)
    np.testing.assert_allclose(found.score / 20, score, atol=1e-6)
    assert (found.video == video.numpy()).mean() > .99

def test_nms_in_search_fills_up_from_twice_as_many():
    model, videos = loud(), noise([30] * 12)
    index, queries = MomentIndex.build(model, videos), ask(model, 8)
    wide, slim = index.search(queries, k=40, **MEAN), index.search(queries, k=20, nms=.5, **MEAN)
    due = temporal_nms(wide, .5, 20)
    for x, y in zip(columns(slim), columns(due)): np.testing.assert_array_equal(x, y)
    assert slim.score.shape == (8, 20)
    r = index.search(queries, 'VR', k=5, nms=.5, **MEAN)
    equal(r, index.search(queries, 'VR', k=5, **MEAN)) # whole videos do not overlap

ADDED = [([12, 3, 40, 40, 1], [5, 40, 12, 1, 22]), ([7], [5, 9]),
         ([3, 7], [7, 7, 9])] # one length on both sides

@pytest.mark.parametrize('first, later', ADDED)
def test_adding_is_building(first, later):
    model = loud()
    whole = noise(first + later)
    corpus = whole.corpus
    def some(names):
        part = noise([1], tag='x')
        part.corpus, part.names, part._lengths = corpus, names, None
        part.durations = np.array([corpus.durations['test'][n] for n in names])
        return part
    n = len(first)
    index = MomentIndex.build(model, some(whole.names[:n])).add(model, some(whole.names[n:]))
    assert index.names == whole.names and len(index.parts) == 2
    queries, own = ask(model, 15), torch.arange(15) % len(whole)
    how = dict(MEAN, own=own, k=30)
    due = MomentIndex.build(model, whole).search(queries, ALL, **how)
    for task, r in index.search(queries, ALL, **how).items(): equal(r, due[task], 1e-4)


# --- on disk

@pytest.fixture
def stored(tmp_path):
    model = loud()
    index = MomentIndex.build(model, noise([4, 12, 1, 33]))
    return model, index.save(tmp_path/'index'), tmp_path/'index'

def test_saved_is_loaded(stored):
    model, index, path = stored
    again = MomentIndex.load(path, model)
    again.verify()
    assert again.names == index.names and again.hash == index.hash
    a, b = (columns(i.search(ask(model, 6), **MEAN)) for i in (index, again))
    for x, y in zip(a, b): np.testing.assert_array_equal(x, y)

def test_adding_writes_the_new_part_only(stored):
    model, index, path = stored
    before = {p: p.stat().st_mtime_ns for p in path.rglob('*.npy')}
    MomentIndex.load(path).add(model, noise([2, 9], tag='w')).save(path)
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())
    assert len(list(path.glob('part-*'))) == 2
    grown = MomentIndex.load(path, model)
    grown.verify()
    assert grown.names == ['v0', 'v1', 'v2', 'v3', 'w0', 'w1']
    assert len(grown.search(ask(model, 3), 'VR', **MEAN).video) == 3
    index.save(path) # back to the old one: what is no longer meant goes
    assert len(list(path.glob('part-*'))) == 1

@pytest.mark.parametrize('dtype', ['float32', 'float16'])
def test_building_on_disk_is_building(tmp_path, dtype):
    model, videos = loud(), noise(np.random.default_rng(0).integers(1, 41, 40))
    def build(path=None): return MomentIndex.build(model, videos, dtype=dtype, path=path)
    path = tmp_path/'index'
    a, b = build(), build(path)
    assert a.hash == b.hash and b.where == path
    MomentIndex.load(path, model).verify()
    build(path).verify() # again, in the same place
    assert len(list(path.iterdir())) == 2
    refused(a.verify, 'is not on disk')

def test_failed_build_leaves_nothing(tmp_path):
    videos = noise([3, 4])
    videos.collate = lambda indices: 1 / 0
    path = tmp_path/'index'
    with pytest.raises(ZeroDivisionError): MomentIndex.build(loud(), videos, path=path)
    assert not list(path.iterdir())
    MomentIndex.build(loud(), noise([3, 4]), path=path)

def test_half_precision_agrees():
    model, videos = loud(), noise(np.random.default_rng(1).integers(2, 41, 120))
    queries = ask(model, 60)
    def found(dtype):
        index = MomentIndex.build(model, videos, dtype=dtype)
        return index.search(queries, ('VR', 'VCMR'), k=10, **MEAN)
    def shared(a, b): return (a[:, :, None] == b[:, None]).any(-1).mean()
    def key(r): return r.video * 1_000_000 + r.start * 1000 + r.end
    full, half = found('float32'), found('float16')
    assert shared(full['VR'].video, half['VR'].video) > .97
    assert shared(key(full['VCMR']), key(half['VCMR'])) > .97

def test_model_is_put_back_into_training():
    model = loud().train()
    MomentIndex.build(model, noise([3]))
    assert model.training


# --- FAISS

def test_faiss_rescores_exactly_and_says_how_well(tmp_path, capsys):
    pytest.importorskip('faiss', reason=FAISS)
    model, videos = loud(), noise(np.random.default_rng(1).integers(2, 41, 300))
    index, queries = MomentIndex.build(model, videos, path=tmp_path/'index'), ask(model, 30)
    how = dict(MEAN, k=20, max_videos=20)
    exact, found = (index.search(queries, 'VR', first=f, **how) for f in ('exact', 'faiss'))
    assert exact.agreement is None and found.agreement > .8
    assert 'FAISS finds' in capsys.readouterr().out
    share = (exact.video[:, :, None] == found.video[:, None]).any(-1).mean()
    assert share > .8
    both = exact.video[:, 0] == found.video[:, 0]
    scores = exact.score[both, 0], found.score[both, 0] # no trace of the approximation in them
    np.testing.assert_allclose(*scores, rtol=3e-5)
    assert len(list((tmp_path/'index').glob('faiss-*'))) == 2
    again = MomentIndex.load(tmp_path/'index').search(queries, 'VR', first='faiss', **how)
    np.testing.assert_array_equal(again.video, found.video)

def test_single_queries_share_the_price_of_agreement(monkeypatch, capsys):
    pytest.importorskip('faiss', reason=FAISS)
    model = loud()
    index, queries, calls = MomentIndex.build(model, noise([9] * 50)), ask(model, 20), []
    exact = moment_index.exact_videos
    def counted(*args): return calls.append(len(args[1][0])) or exact(*args)
    monkeypatch.setattr(moment_index, 'exact_videos', counted)
    how = dict(MEAN, k=5, max_videos=5, first='faiss')
    shares = [index.search(queries[i:i + 1], 'VR', **how).agreement for i in range(20)]
    assert calls == [1] * 16 and len(set(shares[15:])) == 1
    assert capsys.readouterr().out.count('FAISS finds') == 20
    index.search(queries, 'VR', **how)
    assert calls[16:] == [10] # every second of twenty

def test_without_faiss_a_sentence(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'faiss', None)
    model = loud()
    index = MomentIndex.build(model, noise([3, 4]))
    def search(): index.search(ask(model, 2), first='faiss', **MEAN)
    refused(search, 'FAISS is not installed', 'mcls_nb[faiss]')


# --- what users get wrong

@pytest.fixture(scope='module')
def index(): return MomentIndex.build(loud(), noise([4, 12, 1, 33]))

BAD = { # what is wrong -> the change, and what the sentence must name
    'task': (dict(task='VMR'), "no task 'VMR'", "'VCMR'"),
    'no task': (dict(task=()), 'there is no task'),
    'k': (dict(k=0), 'parameter k'),
    'max_videos': (dict(max_videos=0), 'parameter max_videos'),
    'alpha': (dict(alpha=0.), 'is no weight'),
    'merge': (dict(merge='product'), "'product'"),
    'first': (dict(first='hnsw'), "'hnsw'"),
    'nms': (dict(nms=50.), 'not an overlap'),
    'no own': (dict(task='SVMR'), 'parameter own'),
    'own unlike': (dict(task='SVMR', own=[0., 1., 2.]), 'no positions'),
    'few own': (dict(task='SVMR', own=[0, 1]), '2 videos for 3 queries'),
    'own beyond': (dict(task='SVMR', own=[0, 1, 4]), 'video 4 is not'),
    'own before': (dict(task='SVMR', own=[0, -1, 2]), 'video -1 is not')}

@pytest.mark.parametrize('name', BAD)
def test_bad_question(index, name):
    wrong, *words = BAD[name]
    refused(lambda: index.search(ask(loud(), 3), **{**MEAN, **wrong}), *words)

def test_bad_queries(index):
    q = ask(loud(), 3)
    def refuses(queries, *words): refused(lambda: index.search(queries, **MEAN), *words)
    refuses(q[:0], 'no queries')
    refuses(replace(q, video=torch.zeros(3, 8)), 'width 8 instead of 16')
    refuses(replace(q, sub_clip=torch.full((3, 16), torch.nan)), 'queries', 'NaN')

def test_bad_videos():
    model = loud()
    bad = noise([4, 5])
    bad.names = ['v0', 'v0']
    refused(lambda: MomentIndex.build(model, bad), "video 'v0' occurs twice")
    refused(lambda: MomentIndex.build(model, noise([4]), language='zh'), 'zh')
    refused(lambda: MomentIndex.build(model, noise([4]), dtype='int8'), "'int8'")
    longer = noise([4, 5])
    longer._lengths = np.array([4, 6])
    refused(lambda: MomentIndex.build(model, longer), 'other lengths')
    with torch.no_grad(): next(model.parameters()).fill_(torch.nan)
    refused(lambda: MomentIndex.build(model, noise([4])), 'NaN', 'video v0')

def test_bad_additions(index):
    refused(lambda: index.add(loud(1), noise([3], tag='w')), 'other weights')
    refused(lambda: index.add(loud(), noise([3])), "'v0' occurs twice")
    other = noise([3], tag='w')
    index = replace(index, contracts=dict(index.contracts, video=dict(width=6)))
    refused(lambda: index.add(loud(), other), 'another contract')

def test_bad_folders(stored, tmp_path):
    model, index, path = stored
    refused(lambda: MomentIndex.load(tmp_path), 'is no index')
    refused(lambda: MomentIndex.load(path, loud(1)), 'other weights')
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine'/'thesis.txt').write_text('x')
    refused(lambda: index.save(tmp_path/'mine'), 'is not an index')
    part = next(path.glob('part-*'))
    known = (path/'index.json').read_text('utf-8')
    other, fewer = known.replace('"format": 1', '"format": 2'), known.replace('"v1", ', '')
    texts = {'{': 'not JSON', '[]': 'lacks format', other: 'has format 2', fewer: 'do not fit'}
    for text, words in texts.items():
        (path/'index.json').write_text(text, 'utf-8')
        refused(lambda: MomentIndex.load(path), words)
    (path/'index.json').write_text(known, 'utf-8')
    whole = (part/'sub.npy').read_bytes()
    (part/'sub.npy').write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused(MomentIndex.load(path).verify, 'the content differs')
    (part/'sub.npy').write_bytes(whole[:-7])
    refused(lambda: MomentIndex.load(path), 'cannot be read')
    np.save(part/'sub.npy', np.zeros((3, 16), np.float32))
    refused(lambda: MomentIndex.load(path), 'sub have the wrong size')
    np.save(part/'sub.npy', np.array([{}], dtype=object))
    refused(lambda: MomentIndex.load(path), 'cannot be read')
    shutil.rmtree(part)
    refused(lambda: MomentIndex.load(path), 'cannot be read')

def test_an_index_is_replaced_if_it_is_ours_alone(stored, tmp_path):
    model, index, path = stored
    foreign = tmp_path/'site' # of somebody else, with an index.json and parts
    (foreign/'part-one').mkdir(parents=True)
    (foreign/'part-one'/'thesis.txt').write_text('mine')
    (foreign/'index.json').write_text('{"parts": []}')
    def save(path): index.save(path)
    def build(path): MomentIndex.build(model, noise([3]), path=path)
    writers = save, build
    for write in writers: refused(lambda: write(foreign), 'is not an index', 'choose a new folder')
    assert (foreign/'part-one'/'thesis.txt').read_text() == 'mine'
    (path/'part-one').mkdir()
    for name in ('part-one/video.npy', 'faiss-notes.txt'):
        (path/name).write_text('mine')
        for write in writers: refused(lambda: write(path), f"holds ['{name}'], which was not")
        assert (path/name).read_text() == 'mine'
        (path/name).unlink()
    (path/'part-one').rmdir()
    shutil.copytree(next(path.glob('part-*')), path/'.part-0123456789abcdef.7.tmp') # killed
    (path/'part-new').mkdir()
    (path/'part-new'/'deep.npy').touch()
    assert index.save(path).hash == MomentIndex.load(path, model).hash

def test_an_index_without_a_mark_is_read_and_kept(stored):
    model, index, path = stored
    known = (path/'index.json').read_text('utf-8')
    assert known.startswith('{"made_by": "mcls_nb index", ')
    (path/'index.json').write_text(known.replace('"made_by": "mcls_nb index", ', ''), 'utf-8')
    MomentIndex.load(path, model).verify()
    refused(lambda: index.save(path), 'is not an index with the mark of mcls_nb', 'delete this one')
    assert MomentIndex.load(path, model).hash == index.hash

def test_small_corpora_answer_what_they_have():
    model = loud()
    q = ask(model, 3)
    one = MomentIndex.build(model, noise([1]))
    found = one.search(q, ALL, own=[0] * 3, k=2, **MEAN)
    due = dict(VCMR=[[-1, -1]] * 3, SVMR=[[-1, -1]] * 3, VR=[[0, -1]] * 3)
    assert {t: r.video.tolist() for t, r in found.items()} == due
    r = one.search(q, k=2, **dict(MEAN, rule=SpanRule(end_rule='released')))
    assert r.video.tolist() == [[0, -1]] * 3 and r.end[0, 0] == 1.5 and np.isnan(r.end[0, 1])
    two = MomentIndex.build(model, noise([2, 1])).search(q, ALL, own=[0] * 3, k=500, **MEAN)
    answers = {t: (r.video >= 0).sum(1).tolist() for t, r in two.items()}
    assert answers == dict(VCMR=[1] * 3, SVMR=[1] * 3, VR=[2] * 3)
