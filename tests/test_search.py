"""Moment search: the released code's lists, the notebook's oracle on ragged corpora, indices on disk, and what users get wrong.

tests/fixtures/mtvr holds arrays that the released code wrote; `naive` and its helpers are those of the notebook."""
import ast, json, shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helpers import refused
from mcls_nb.retrieve import index as search
from mcls_nb.retrieve.data import VideoBatch
from mcls_nb.retrieve.spans import RELEASED_SPANS, SpanRule
from mcls_nb.retrieve.encoders import XMLConfig, from_reference
from mcls_nb.retrieve.scoring import Queries
from mcls_nb.retrieve.index import MomentIndex
from mcls_nb.retrieve.spans import Ranking, rank_spans, temporal_nms

HERE = Path(__file__).parent
FIXTURES = HERE/'fixtures'/'mtvr'
ALL = ('VCMR', 'SVMR', 'VR')


def borrow(notebook, *names):
    "Functions that a notebook defines for its own tests."
    cells = [''.join(c['source']) for c in json.loads((HERE.parent/'nbs'/notebook).read_text('utf-8'))['cells'] if c['cell_type'] == 'code']
    nodes = [n for c in cells for n in ast.parse(c).body]
    space = {}
    for n in nodes: # with the imports that they lean on
        if isinstance(n, (ast.Import, ast.ImportFrom)) or isinstance(n, ast.FunctionDef) and n.name in names: exec(ast.unparse(n), space)
    return [space[n] for n in names]

naive, noise, loud, same, oracle_of = borrow('api/35_index.ipynb', 'naive', 'noise', 'loud', 'same', 'oracle_of')

def arrays(name): return {k: torch.from_numpy(np.asarray(v)) for k, v in np.load(FIXTURES/f'{name}.npz').items()}

def ask(model, n, seed=0):
    x = torch.randn(n, 7, 5, generator=torch.Generator().manual_seed(seed))
    return model.encode_queries(x, torch.ones(n, 7, dtype=bool), 'en')

def equal(a, b, rtol=3e-5):
    "Two rankings agree up to near ties."
    np.testing.assert_allclose(a.score, b.score, rtol=rtol)
    assert ((a.video == b.video) & ((a.start == b.start) | (a.video < 0))).mean() > .99

# --- the released code's lists

def listed(found, fixture):
    "Equal to rows of video, start, end, score, but for places that near ties have swapped."
    mine, due = np.stack(found, -1), fixture.numpy()
    np.testing.assert_allclose(mine[..., 3], due[..., 3], rtol=3e-5)
    for i, j in zip(*np.nonzero((mine[..., :3] != due[..., :3]).any(-1))):
        twin = np.flatnonzero((due[i, :, :3] == mine[i, j, :3]).all(-1))
        last = abs(due[i, -1, 3] / mine[i, j, 3] - 1) < 3e-5 # swapped with one that is no longer listed
        assert last or len(twin) == 1 and abs(due[i, twin[0], 3] / mine[i, j, 3] - 1) < 3e-5

@pytest.fixture(params=['small', 'real_dims'])
def released(request):
    g = arrays(f'g_inference_{request.param}')
    return SimpleNamespace(**g, p_st=g['st_logits'].softmax(-1), p_ed=g['ed_logits'].softmax(-1), many=int(g['max_n_videos']))

def test_oracle_writes_the_released_lists(released):
    g = released
    due = naive(g.video_scores, g.p_st, g.p_ed, 200, RELEASED_SPANS, g.gt_video_row, g.many)
    score, video, start, end = due['VCMR']
    listed((g.video_idx[video], start, end, score), g.vcmr)
    score, video = due['VR']
    listed((g.video_idx[video[:, :g.many]], *(torch.zeros(len(video), g.many),) * 2, score[:, :g.many]), g.vr)
    score, video, start, end = due['SVMR']
    for i, n in enumerate(g.svmr_n_valid.tolist()): # what follows are illegal spans in an undefined order
        listed([x[None, i, :n] for x in (g.video_idx[video], start, end, score)], g.svmr[None, i, :n])
        assert score[i, n:].isnan().all()

def spans_of(g, k):
    "VCMR and SVMR lists by `rank_spans`, as rankings of rows of the fixture."
    s, v = g.video_scores.topk(g.many)
    rows, own = torch.arange(len(v))[:, None], g.gt_video_row[:, None]
    for video, weight in ((v, s), (own, None)):
        score, slot, st, ed = rank_spans(g.p_st[rows, video], g.p_ed[rows, video], weight, k, RELEASED_SPANS)
        none, (start, end) = (slot < 0).numpy(), RELEASED_SPANS.seconds(st, ed)
        name = g.video_idx[video.gather(1, slot.clamp(min=0))].numpy()
        yield Ranking(np.where(none, -1, name), np.where(none, np.nan, start), np.where(none, np.nan, end), score.numpy())

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
    (wide, _), (vcmr, svmr) = spans_of(g, 200), spans_of(g, 100) # the released code cut to 100 before
    found = dict(vcmr_nms05_from200=temporal_nms(wide, .5, 100), vcmr_nms05_from100=temporal_nms(vcmr, .5), svmr_nms05_fixed_valid_only=temporal_nms(svmr, .5))
    for name, r in found.items():
        due, missing = getattr(g, name).numpy(), r.video < 0
        np.testing.assert_array_equal(np.isnan(due[..., 3]), missing)
        np.testing.assert_allclose(r.score, due[..., 3], rtol=3e-5)
        np.testing.assert_array_equal(np.stack(columns(r)[:3], -1)[~missing], due[..., :3][~missing])

@pytest.mark.parametrize('name, threshold, k', [('0.3', .3, None), ('0.5', .5, None), ('0.7', .7, None), ('0.5_max5', .5, 5)])
def test_nms_alone(name, threshold, k):
    f = arrays('i_misc')
    spans = f['nms_in'][f['nms_in'][:, 2].sort(descending=True, stable=True).indices].numpy()
    found = temporal_nms(Ranking(np.zeros((1, 60), int), *(c[None] for c in spans.T)), threshold, k)
    n = (found.video >= 0).sum()
    np.testing.assert_array_equal(np.stack([found.start, found.end, found.score], -1)[0, :n], f[f'nms_out_thd{name}'].numpy())

@pytest.mark.parametrize('l, low, high', [(8, 2, 5), (20, 2, 16)])
def test_band_is_the_released_mask(l, low, high):
    rule = SpanRule(end_rule='released', min_clips=low + 1, max_clips=high)
    _, _, st, ed = rank_spans(*(torch.full((1, 1, l), 1 / l),) * 2, k=l * l, rule=rule)
    mask = np.zeros((l, l))
    mask[st[st >= 0], ed[st >= 0]] = 1
    np.testing.assert_array_equal(mask, arrays('i_misc')[f'min_max_mask_L{l}_{low}_{high}'].numpy())

def test_index_of_released_weights():
    "Video scores and curves of all pairs, encoded and packed by us; canonical padding, which three of five videos have in the fixture."
    cfg = XMLConfig(d_video=24, d_text=20, d=16, heads=2, max_clips=14, max_words=9)
    model, x = from_reference(arrays('weights_mxml'), cfg), arrays('inputs')
    for language in cfg.languages:
        video, sub, mask = (x[f'{language}.{n}'] for n in ('video_feat', 'sub_feat', 'video_mask'))
        lengths = mask.sum(1).int().numpy()
        def collate(indices):
            l = int(lengths[indices].max()) + 2 # the fixture's rows end with its longest video
            grow = lambda a: torch.nn.functional.pad(a, (0, 0, 0, 2))[indices, :l]
            return VideoBatch([f'v{i}' for i in indices], grow(video), {language: grow(sub)}, torch.nn.functional.pad(mask, (0, 2))[indices, :l].bool())
        class Five(SimpleNamespace): __len__ = lambda self: 5
        index = MomentIndex.build(model, Five(names=[f'v{i}' for i in range(5)], lengths=lengths, durations=1.5 * lengths, collate=collate), language)
        q = model.encode_queries(x[f'{language}.query_feat'], x[f'{language}.query_mask'].bool(), language)
        r = index.search(q, 'VR', k=5)
        due = arrays('d_video_scores')[f'{language}.merged_scores'].numpy()
        np.testing.assert_allclose(np.log(r.score) / 20, np.take_along_axis(due, r.video, 1), atol=1e-5)
        slots = torch.arange(5).expand(5, 5)
        with torch.no_grad(): p = search._edges(index, torch.cat([q.video_clip, q.sub_clip], -1) / 2, slots) # q v 2 l
        e = arrays('e_st_ed')
        for i, edge in enumerate(('st', 'ed')):
            due = e[f'{language}.{edge}_logits_cross'].softmax(-1)[:, index.numbers]
            few = torch.from_numpy(index.numbers) != 0 # the longest video has no padding in the fixture
            np.testing.assert_allclose(p[:, few, i], due[:, few], atol=2e-5)


# --- the same lists as the oracle's

CORPORA = {'ragged': lambda rng: rng.integers(1, 41, 130), 'short with a few long': lambda rng: np.r_[rng.integers(1, 6, 200), [40, 39, 38]],
           'all alike': lambda rng: np.r_[[17] * 120, rng.integers(1, 41, 5)]}

@pytest.mark.parametrize('rule', [SpanRule(), RELEASED_SPANS, SpanRule(min_clips=4, max_clips=40)], ids=['consistent', 'released', 'long'])
@pytest.mark.parametrize('seed, corpus', list(enumerate(CORPORA)))
def test_top_100_are_the_oracles(seed, corpus, rule):
    rng = np.random.default_rng(seed)
    model, videos = loud(seed), noise(CORPORA[corpus](rng), seed)
    queries, own = ask(model, 40, seed), torch.from_numpy(rng.integers(0, len(videos), 40))
    found = MomentIndex.build(model, videos).search(queries, ALL, own=own, rule=rule, batch=17)
    s, a, e = oracle_of(model, videos, queries)
    due, extra = naive(s, a, e, 100, rule, own), int(rule.end_rule == 'released')
    span = lambda q, v, i, j: a[q, v, int(i / 1.5)] * e[q, v, int(j / 1.5) - extra]
    weight = lambda q, v: (20 * s[q, v]).exp()
    assert same(found['VCMR'], due['VCMR'], lambda q, v, i, j: weight(q, v) * span(q, v, i, j)) > .99
    assert same(found['SVMR'], due['SVMR'], span) > .99
    assert same(found['VR'], due['VR'], lambda q, v, i, j: weight(q, v)) > .99
    assert not found['VR'].start.any() and all(r.score.shape == (40, 100) for r in found.values())

def test_tasks_alone_answer_as_together():
    model, videos = loud(), noise([3, 9, 30, 4, 1, 12])
    index, queries, own = MomentIndex.build(model, videos), ask(model, 9), torch.tensor([0, 5, 2] * 3)
    together = index.search(queries, ALL, own=own, k=20, max_videos=4)
    for task in ALL:
        alone = index.search(queries, task, own=own, k=20, max_videos=4)
        for x, y in zip(columns(alone), columns(together[task])): np.testing.assert_allclose(x, y, rtol=1e-5)

def test_sum_of_streams():
    model, videos = loud(), noise(np.random.default_rng(0).integers(2, 41, 50))
    queries = ask(model, 20)
    found = MomentIndex.build(model, videos).search(queries, merge='sum', alpha=10.)
    s, a, e = oracle_of(model, videos, queries, 'sum')
    due = naive(s, a, e, alpha=10.)['VCMR']
    assert same(found, due, lambda q, v, i, j: (10 * s[q, v]).exp() * a[q, v, int(i / 1.5)] * e[q, v, int(j / 1.5)]) > .99
    mean = MomentIndex.build(model, videos).search(queries, 'VR')
    equal(mean, MomentIndex.build(model, videos).search(queries, 'VR', merge='sum', alpha=10.))

def test_many_videos_stream_by():
    "More than the 4,096 that are ranked at once, in two parts."
    rng = np.random.default_rng(0)
    def part(n, first):
        p = search._empty_part(np.sort(rng.integers(1, 4, n)), first + rng.permutation(n), 8, 2, np.float32)
        for f in search._ROWS: getattr(p, f).copy_(torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=getattr(p, f).shape)), dim=-1))
        return p
    index = MomentIndex([part(9000, 0), part(300, 9000)], [str(i) for i in range(9300)], [1.] * 9300, 'en', torch.ones(2, 1, 5), '', {})
    queries = Queries(*(torch.randn(5, 8) for _ in range(4)))
    due = torch.empty(5, 9300)
    for p in index.parts:
        for a, l, n in zip(p.ends, p.lengths, p.numbers):
            due[:, n] = sum((torch.nn.functional.normalize(q, dim=-1) @ x[a:a + l].T).amax(1) for q, x in ((queries.video, p.video), (queries.sub, p.sub))) / 2
    score, video = due.topk(150)
    found = index.search(queries, 'VR', k=150)
    np.testing.assert_allclose(np.log(found.score) / 20, score, atol=1e-6)
    assert (found.video == video.numpy()).mean() > .99

def test_nms_in_search_fills_up_from_twice_as_many():
    model, videos = loud(), noise([30] * 12)
    index, queries = MomentIndex.build(model, videos), ask(model, 8)
    wide, slim = index.search(queries, k=40), index.search(queries, k=20, nms=.5)
    due = temporal_nms(wide, .5, 20)
    for x, y in zip(columns(slim), columns(due)): np.testing.assert_array_equal(x, y)
    assert slim.score.shape == (8, 20)
    r = index.search(queries, 'VR', k=5, nms=.5)
    equal(r, index.search(queries, 'VR', k=5)) # whole videos do not overlap

@pytest.mark.parametrize('first, later', [([12, 3, 40, 40, 1], [5, 40, 12, 1, 22]), ([7], [5, 9]), ([3, 7], [7, 7, 9])]) # the last: one length on both sides
def test_adding_is_building(first, later):
    model = loud()
    whole = noise(first + later)
    corpus = whole.corpus
    def some(names):
        part = noise([1], tag='x')
        part.corpus, part.names = corpus, names
        part.durations, part._lengths = np.array([corpus.durations['test'][n] for n in names]), None
        return part
    index = MomentIndex.build(model, some(whole.names[:len(first)])).add(model, some(whole.names[len(first):]))
    assert index.names == whole.names and len(index.parts) == 2
    queries, own = ask(model, 15), torch.arange(15) % len(whole)
    due = MomentIndex.build(model, whole).search(queries, ALL, own=own, k=30)
    for task, r in index.search(queries, ALL, own=own, k=30).items(): equal(r, due[task], 1e-4)


# --- on disk

@pytest.fixture
def stored(tmp_path):
    model = loud()
    return model, MomentIndex.build(model, noise([4, 12, 1, 33])).save(tmp_path/'index'), tmp_path/'index'

def test_saved_is_loaded(stored):
    model, index, path = stored
    again = MomentIndex.load(path, model)
    again.verify()
    assert again.names == index.names and again.hash == index.hash
    for x, y in zip(columns(index.search(ask(model, 6))), columns(again.search(ask(model, 6)))): np.testing.assert_array_equal(x, y)

def test_adding_writes_the_new_part_only(stored):
    model, index, path = stored
    before = {p: p.stat().st_mtime_ns for p in path.rglob('*.npy')}
    MomentIndex.load(path).add(model, noise([2, 9], tag='w')).save(path)
    assert all(p.stat().st_mtime_ns == t for p, t in before.items()) and len(list(path.glob('part-*'))) == 2
    grown = MomentIndex.load(path, model)
    grown.verify()
    assert grown.names == ['v0', 'v1', 'v2', 'v3', 'w0', 'w1'] and len(grown.search(ask(model, 3), 'VR').video) == 3
    index.save(path) # back to the old one: what is no longer meant goes
    assert len(list(path.glob('part-*'))) == 1

@pytest.mark.parametrize('dtype', ['float32', 'float16'])
def test_building_on_disk_is_building(tmp_path, dtype):
    model, videos = loud(), noise(np.random.default_rng(0).integers(1, 41, 40))
    a, b = MomentIndex.build(model, videos, dtype=dtype), MomentIndex.build(model, videos, dtype=dtype, path=tmp_path/'index')
    assert a.hash == b.hash and b.where == tmp_path/'index'
    MomentIndex.load(tmp_path/'index', model).verify()
    MomentIndex.build(model, videos, dtype=dtype, path=tmp_path/'index').verify() # again, in the same place
    assert len(list((tmp_path/'index').iterdir())) == 2
    refused(a.verify, 'is not on disk')

def test_failed_build_leaves_nothing(tmp_path):
    videos = noise([3, 4])
    videos.collate = lambda indices: 1 / 0
    with pytest.raises(ZeroDivisionError): MomentIndex.build(loud(), videos, path=tmp_path/'index')
    assert not list((tmp_path/'index').iterdir())
    MomentIndex.build(loud(), noise([3, 4]), path=tmp_path/'index')

def test_half_precision_agrees():
    model, videos = loud(), noise(np.random.default_rng(1).integers(2, 41, 120))
    queries = ask(model, 60)
    full, half = (MomentIndex.build(model, videos, dtype=d).search(queries, ('VR', 'VCMR'), k=10) for d in ('float32', 'float16'))
    assert (full['VR'].video[:, :, None] == half['VR'].video[:, None]).any(-1).mean() > .97
    key = lambda r: r.video * 1_000_000 + r.start * 1000 + r.end
    assert (key(full['VCMR'])[:, :, None] == key(half['VCMR'])[:, None]).any(-1).mean() > .97

def test_model_is_put_back_into_training():
    model = loud().train()
    MomentIndex.build(model, noise([3]))
    assert model.training


# --- FAISS

def test_faiss_rescores_exactly_and_says_how_well(tmp_path, capsys):
    pytest.importorskip('faiss', reason='FAISS is an optional dependency: pip install "mcls_nb[faiss]"')
    model, videos = loud(), noise(np.random.default_rng(1).integers(2, 41, 300))
    index, queries = MomentIndex.build(model, videos, path=tmp_path/'index'), ask(model, 30)
    exact, found = (index.search(queries, 'VR', k=20, max_videos=20, first=f) for f in ('exact', 'faiss'))
    assert exact.agreement is None and found.agreement > .8 and 'FAISS finds' in capsys.readouterr().out
    share = (exact.video[:, :, None] == found.video[:, None]).any(-1).mean()
    assert share > .8
    both = exact.video[:, 0] == found.video[:, 0]
    np.testing.assert_allclose(exact.score[both, 0], found.score[both, 0], rtol=3e-5) # no trace of the approximation in a score
    assert len(list((tmp_path/'index').glob('faiss-*'))) == 2
    again = MomentIndex.load(tmp_path/'index').search(queries, 'VR', k=20, max_videos=20, first='faiss')
    np.testing.assert_array_equal(again.video, found.video)

def test_single_queries_share_the_price_of_agreement(monkeypatch, capsys):
    pytest.importorskip('faiss', reason='FAISS is an optional dependency: pip install "mcls_nb[faiss]"')
    model = loud()
    index, queries, calls = MomentIndex.build(model, noise([9] * 50)), ask(model, 20), []
    exact = search._best_videos
    monkeypatch.setattr(search, '_best_videos', lambda *args: calls.append(len(args[1][0])) or exact(*args))
    shares = [index.search(queries[i:i + 1], 'VR', k=5, max_videos=5, first='faiss').agreement for i in range(20)]
    assert calls == [1] * 16 and len(set(shares[15:])) == 1 and capsys.readouterr().out.count('FAISS finds') == 20
    index.search(queries, 'VR', k=5, max_videos=5, first='faiss')
    assert calls[16:] == [10] # every second of twenty

def test_without_faiss_a_sentence(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'faiss', None)
    model = loud()
    refused(lambda: MomentIndex.build(model, noise([3, 4])).search(ask(model, 2), first='faiss'), 'FAISS is not installed', 'mcls_nb[faiss]')


# --- what users get wrong

@pytest.fixture(scope='module')
def index(): return MomentIndex.build(loud(), noise([4, 12, 1, 33]))

BAD = {'task': (dict(task='VMR'), "no task 'VMR'", "'VCMR'"), 'no task': (dict(task=()), 'there is no task'), 'k': (dict(k=0), 'parameter k'),
       'max_videos': (dict(max_videos=0), 'parameter max_videos'), 'alpha': (dict(alpha=100.), 'too large for float32'), 'merge': (dict(merge='product'), "'product'"),
       'first': (dict(first='hnsw'), "'hnsw'"), 'nms': (dict(nms=50.), 'not an overlap'), 'no own': (dict(task='SVMR'), 'parameter own'),
       'own unlike': (dict(task='SVMR', own=[0., 1., 2.]), 'no positions'), 'few own': (dict(task='SVMR', own=[0, 1]), '2 videos for 3 queries'), 'own beyond': (dict(task='SVMR', own=[0, 1, 4]), 'video 4 is not'),
       'own before': (dict(task='SVMR', own=[0, -1, 2]), 'video -1 is not')}

@pytest.mark.parametrize('name', BAD)
def test_bad_question(index, name):
    wrong, *words = BAD[name]
    refused(lambda: index.search(ask(loud(), 3), **wrong), *words)

def test_bad_queries(index):
    q = ask(loud(), 3)
    refused(lambda: index.search(q[:0]), 'no queries')
    refused(lambda: index.search(replace(q, video=torch.zeros(3, 8))), 'width 8 instead of 16')
    refused(lambda: index.search(replace(q, sub_clip=torch.full((3, 16), torch.nan))), 'queries', 'NaN')

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
    for text, words in (('{', 'not JSON'), ('[]', 'lacks format'), (known.replace('"format": 1', '"format": 2'), 'has format 2'), (known.replace('"v1", ', ''), 'do not fit')):
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
    writers = (lambda p: index.save(p), lambda p: MomentIndex.build(model, noise([3]), path=p))
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
    assert {t: r.video.tolist() for t, r in one.search(q, ALL, own=[0] * 3, k=2).items()} == dict(VCMR=[[-1, -1]] * 3, SVMR=[[-1, -1]] * 3, VR=[[0, -1]] * 3)
    r = one.search(q, rule=replace(SpanRule(), end_rule='released'), k=2)
    assert r.video.tolist() == [[0, -1]] * 3 and r.end[0, 0] == 1.5 and np.isnan(r.end[0, 1])
    two = MomentIndex.build(model, noise([2, 1])).search(q, ALL, own=[0] * 3, k=500)
    assert [(r.video >= 0).sum(1).tolist() for r in two.values()] == [[1] * 3, [1] * 3, [2] * 3] # VCMR, SVMR, VR
