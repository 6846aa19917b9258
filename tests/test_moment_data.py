"""Queries, moments and their features: official labels, batches that depend on nothing but their
items, and whatever is wrong in one sentence."""
import json, multiprocessing, pickle
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from helpers import refused
from mcls_nb.features import TVR_VIDEO, FeatureContract, FeatureStore
from mcls_nb.retrieve.data import MomentCorpus, MomentData, Query, VideoSet, query_features
from mcls_nb.retrieve.mtvr import (
    TVR_TEXT, H5Features, load_mtvr, read_annotations, read_durations, save_mtvr)
from mcls_nb.retrieve.spans import RELEASED_SPANS, SpanRule

FIXTURE = Path(__file__).parent/'fixtures'/'mtvr'/'i_misc.npz'
LANGUAGES = ('en', 'zh')
CONSISTENT = SpanRule()

def make(videos=7, each=5, seed=0, longest=40):
    "A corpus of noise with two splits."
    rng = np.random.default_rng(seed)
    def normal(n, d): return rng.normal(size=(n, d)).astype(np.float32)
    splits, durations, video = {}, {}, {}
    subtitles, words = ({l: {} for l in LANGUAGES} for _ in range(2))
    def ask(v, split): # a query
        start, end = sorted(rng.uniform(0, durations[split][v], 2))
        n = sum(map(len, splits.values()))
        texts = dict(en=f'query {n}', zh=f'问题{n}')
        splits[split].append(Query(n, v, (start, end + .01), 'vt', texts))
        for l in LANGUAGES: words[l][str(n)] = normal(int(rng.integers(1, 9)), 4)
    for split in ('train', 'val'):
        splits[split], durations[split] = [], {}
        for v in (f'{split}_{k}' for k in range(videos)):
            clips = int(rng.integers(1, longest))
            durations[split][v], video[v] = 1.5 * clips - .3, normal(clips, 6)
            for l in LANGUAGES: subtitles[l][v] = normal(clips, 4)
            for _ in range(each): ask(v, split)
    return MomentCorpus('noise', LANGUAGES, splits, durations, video, subtitles, words)

@pytest.fixture(scope='module')
def corpus(): return make()

@pytest.fixture
def folder(corpus, tmp_path):
    save_mtvr(corpus, tmp_path/'mtvr')
    return tmp_path/'mtvr'

def same(a, b):
    for name in ('ids', 'names'): assert getattr(a, name) == getattr(b, name)
    for name in ('video', 'mask', 'own', 'span'):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    for name in ('query', 'query_mask', 'subtitles'):
        for l in LANGUAGES: assert torch.equal(getattr(a, name)[l], getattr(b, name)[l]), name


# --- clips and seconds

def test_labels_are_the_official_ones():
    z = np.load(FIXTURE)
    for rule in (CONSISTENT, RELEASED_SPANS):
        labels = np.stack(rule.label(z['label_ts'], z['label_ctx_l']), 1)
        assert np.array_equal(labels, z['label_train'])
        one_by_one = [tuple(map(int, rule.label(m, 41))) for m in z['label_ts']]
        assert one_by_one == [tuple(x) for x in z['label_train']]

def test_bands_are_the_official_ones():
    z = np.load(FIXTURE)
    short = SpanRule(end_rule='released', min_clips=3, max_clips=5)
    for name, rule in dict(min_max_mask_L20_2_16=RELEASED_SPANS, min_max_mask_L8_2_5=short).items():
        n, (lo, hi) = len(z[name]), rule.band
        length = np.arange(n) - np.arange(n)[:, None]
        assert np.array_equal((lo <= length) & (length <= hi), z[name] == 1)

def test_text_rows_are_normalised_as_released():
    z, video = np.load(FIXTURE), {'a': np.zeros((3, 2), np.float32)}
    subtitles = dict(en={'a': z['l2_in']})
    small = MomentCorpus('small', ('en',), {}, dict(val={'a': 4.}), video, subtitles, dict(en={}))
    b = VideoSet(small, 'val').collate([0])
    np.testing.assert_allclose(b.subtitles['en'][0, :3].numpy(), z['l2_out'], atol=1e-6)
    assert not b.subtitles['en'][0, 3:].any() and not b.mask[0, 3:].any()

ROUND_TRIPS = [(RELEASED_SPANS, 79.6, 40.5), (CONSISTENT, 94.8, 73.1)]

@pytest.mark.parametrize('rule, at5, at7', ROUND_TRIPS, ids=['released', 'consistent'])
def test_round_trip_of_real_labels(shared_data, rule, at5, at7):
    queries = read_annotations(shared_data/'mtvr'/'tvr_zh_en_val_release.jsonl')
    durations = read_durations(shared_data/'mtvr'/'tvr_video2dur_idx.json', 'val')
    moments = np.array([q.moment for q in queries])
    seconds = np.array([durations[q.video][0] for q in queries])
    clips = np.minimum(seconds // 1.5 + 1, 100).astype(int)
    meant = rule.seconds(*rule.label(moments, clips))
    for kind, slack in ((np.float64, .0501), (np.float32, .1)): # 99 moments are about at IoU 0.7
        (a, b), (s, e) = moments.T.astype(kind), (x.astype(kind) for x in meant)
        common, hull = np.minimum(b, e) - np.maximum(a, s), np.maximum(b, e) - np.minimum(a, s)
        iou = np.maximum(common, 0) / hull
        for at, share in ((kind(.5), at5), (kind(.7), at7)):
            assert abs(100 * (iou >= at).mean() - share) < slack

def test_consistent_spans_hold_their_moments():
    rng = np.random.default_rng(0)
    start = rng.uniform(0, 100, 1000)
    moments = np.stack([start, start + rng.uniform(.01, 30, 1000)], 1)
    for clip in (.5, 1.5, 2.):
        s, e = SpanRule(clip=clip).seconds(*SpanRule(clip=clip).label(moments, 1000))
        before, after = moments[:, 0] - s, e - moments[:, 1]
        assert (before >= 0).all() and (after >= 0).all()
        assert (before < clip).all() and (after < clip).all()

NO_RULES = [(dict(clip=0), 'no clip'), (dict(clip=float('nan')), 'no clip'),
            (dict(end_rule='inclusive'), 'end rule'),
            (dict(min_clips=0), '0 to 16'), (dict(max_clips=0), '1 to 0')]

@pytest.mark.parametrize('change, words', NO_RULES)
def test_rules_that_cannot_be(change, words): refused(lambda: SpanRule(**change), words)


# --- batches

@pytest.mark.parametrize('seed', range(3))
def test_an_item_does_not_depend_on_its_batch(seed):
    corpus = make(seed=seed)
    data, videos = MomentData(corpus), VideoSet(corpus, 'train')
    whole = data.collate(range(len(data.queries)))
    assert whole.names == videos.names
    for k in (0, 7, 33):
        one = data.collate([k])
        n = int(one.mask.sum())
        assert one.video.shape[1] == n + 2
        assert torch.equal(one.video[0, :n], whole.video[whole.own[k], :n])
        assert torch.equal(one.span[0], whole.span[k])
        for l in LANGUAGES:
            t = int(one.query_mask[l].sum())
            assert torch.equal(one.query[l][0], whole.query[l][k, :t])
            assert not whole.query[l][k, t:].any()
    every = videos.collate(range(len(videos)))
    assert torch.equal(every.video, whole.video) and torch.equal(every.mask, whole.mask)

def test_labels_lie_inside(corpus):
    for limit in (100, 9):
        data = MomentData(replace(corpus, max_clips=limit))
        b = data.collate(range(len(data.queries)))
        clips = b.mask.sum(1)[b.own]
        assert (b.span >= 0).all() and (b.span < clips[:, None]).all()
        assert (b.span[:, 0] <= b.span[:, 1]).all()
        assert b.mask.sum(1).max() <= limit and b.video.shape[1] <= limit

@pytest.mark.parametrize('n', range(2, 12))
def test_every_query_once_and_never_a_lonely_video(n):
    data = MomentData(make(videos=n, each=2, longest=6), batch_videos=3, seed=5)
    for epoch in range(3):
        batches = data.batches(epoch)
        videos = [{data.queries[i].video for i in b} for b in batches]
        assert all(2 <= len(v) <= 3 for v in videos)
        assert len(set().union(*videos)) == sum(map(len, videos)) == n
        assert sorted(i for b in batches for i in b) == list(range(2 * n))

def test_part_of_the_queries_of_each_video(corpus):
    data = MomentData(corpus, batch_videos=4, queries_per_video=2)
    first, second = ({i for b in data.batches(e) for i in b} for e in (0, 1))
    assert len(first) == len(second) == 14 and first != second

def test_queries_one_by_one(corpus):
    data = MomentData(corpus, batch_videos=8, by='query')
    batches = data.batches(0)
    assert sorted(i for b in batches for i in b) == list(range(35))
    assert [len(b) for b in batches] == [8, 8, 8, 8, 3]
    b = data.collate(batches[0])
    assert [b.names[k] for k in b.own] == [data.queries[i].video for i in batches[0]]
    assert len(b) == 8

def test_one_language_reads_one(corpus):
    subtitles, queries = ({'zh': s['zh']} for s in (corpus.subtitles, corpus.queries))
    less = replace(corpus, languages=('zh',), subtitles=subtitles, queries=queries)
    b = MomentData(less).collate([0, 9])
    assert set(b.query) == set(b.subtitles) == {'zh'}

def test_batches_move(corpus):
    for b in (MomentData(corpus).collate([1, 2]), VideoSet(corpus, 'val').collate([0])):
        moved = b.to('meta')
        assert moved.video.is_meta and moved.subtitles['en'].is_meta
        assert moved.names == b.names and len(moved) == len(b)

def test_long_videos_and_queries_are_cut(corpus):
    less = replace(corpus, max_clips=5, max_words=3)
    videos, full = VideoSet(less, 'train'), VideoSet(corpus, 'train')
    assert videos.lengths.tolist() == full.lengths.clip(max=5).tolist()
    x, mask = query_features(less, less.splits['train'], 'en')
    whole, _ = query_features(corpus, corpus.splits['train'], 'en')
    assert x.shape[1] == 3 and torch.equal(x, whole[:, :3])

def test_a_clip_more_of_subtitles_is_cut(corpus):
    def longer(source): return {v: np.concatenate([r, r[-1:]]) for v, r in source.items()}
    longer = {l: longer(source) for l, source in corpus.subtitles.items()}
    a, b = (VideoSet(c, 'train') for c in (replace(corpus, subtitles=longer), corpus))
    assert a.lengths.tolist() == b.lengths.tolist()
    x, y = (videos.collate([0, 1]).subtitles['en'] for videos in (a, b))
    assert torch.equal(x, y)

def test_a_video_of_one_clip(corpus):
    def one(d): return {'train_0': np.ones((1, d), np.float32)}
    query = Query(0, 'train_0', (0., 1.), 'v', dict(en='a', zh='b'))
    train = {**corpus.durations['train'], 'train_0': 1.5}
    short = replace(corpus, video={**corpus.video, **one(6)},
                    subtitles={l: {**s, **one(4)} for l, s in corpus.subtitles.items()},
                    durations={**corpus.durations, 'train': train},
                    splits=dict(train=[query, *corpus.splits['train'][5:]]))
    b = MomentData(short).collate([0])
    assert b.span.tolist() == [[0, 0]] and b.video.shape[1] == 3


# --- files

def test_what_is_written_is_read(corpus, folder):
    again = load_mtvr(folder)
    assert again.splits == corpus.splits and again.durations == corpus.durations
    assert (again.d_video, again.d_text) == (6, 4)
    for split in ('train', 'val'):
        a, b = (MomentData(c, split, batch_videos=3) for c in (again, corpus))
        for x, y in zip(a.batches(0), b.batches(0)): same(a.collate(x), b.collate(y))

def _read(corpus, out): out.put(MomentData(corpus).collate([0, 8]).video.numpy())

@pytest.mark.parametrize('start', ['fork', 'spawn'])
def test_other_processes_open_files_of_their_own(folder, start):
    corpus = load_mtvr(folder)
    here = MomentData(corpus).collate([0, 8]).video.numpy() # open before the others start
    context = multiprocessing.get_context(start)
    out = context.Queue()
    workers = [context.Process(target=_read, args=(corpus, out)) for _ in range(3)]
    for w in workers: w.start()
    there = [out.get(timeout=60) for _ in workers]
    for w in workers: w.join()
    assert all(np.array_equal(x, here) for x in there)
    assert np.array_equal(MomentData(corpus).collate([0, 8]).video.numpy(), here)

def test_handles_stay_at_home(folder):
    h5 = load_mtvr(folder).video
    assert len(h5) == 14 and 'train_3' in h5
    packed = pickle.dumps(h5)
    assert len(packed) < 500 and np.array_equal(pickle.loads(packed)['train_3'], h5['train_3'])

def test_features_are_read_when_they_are_asked_for(folder):
    for p in (folder/'mtvr_features').rglob('*.h5'): p.unlink()
    corpus = load_mtvr(folder)
    assert len(corpus.splits['val']) == 35 and len(VideoSet(corpus, 'val')) == 7
    refused(lambda: VideoSet(corpus, 'val').lengths, 'are not there', 'cat_cl-1.5.h5')
    def ask(): query_features(corpus, corpus.splits['val'], 'zh')
    refused(ask, 'are not there', 'bert_feature_zh')

def test_hidden_moments(folder):
    file = folder/'tvr_zh_en_test_public_release.jsonl'
    file.write_text('{"desc_id": 5, "descs": {"en": "a", "zh": "b"}}\n')
    videos = folder/'tvr_video2dur_idx.json'
    more = {**json.loads(videos.read_text()), 'test_public': {'x': [3., 99]}}
    videos.write_text(json.dumps(more))
    corpus = load_mtvr(folder)
    assert corpus.splits['test_public'] == [Query(5, '', None, '', dict(en='a', zh='b'))]
    refused(lambda: MomentData(corpus, 'test_public'), 'the moment of query 5 is hidden')

def test_tvr_has_one_language(tmp_path):
    told = dict(desc_id=5, vid_name='x', ts=[0, 1], type='t', desc='who ?')
    (tmp_path/'a.jsonl').write_text(json.dumps(told))
    assert read_annotations(tmp_path/'a.jsonl') == [Query(5, 'x', (0., 1.), 't', dict(en='who ?'))]

def test_real_annotations(shared_data):
    corpus = load_mtvr(shared_data/'mtvr')
    val, test = corpus.splits['val'], corpus.splits['test_public']
    videos = {split: len(d) for split, d in corpus.durations.items()}
    assert len(val) == 10895 and (videos['val'], videos['test_public']) == (2179, 1089)
    assert all(q.moment is None and q.video == '' for q in test)
    assert len({q.video for q in val}) == 2179
    file = shared_data/'mtvr'/'tvr_video2dur_idx.json'
    indices = [i for _, i in read_durations(file, 'val').values()]
    assert indices == list(range(19614, 21793))
    refused(lambda: VideoSet(corpus, 'val').collate([0]), 'are not there')

def test_contracts_of_the_release():
    for c in (TVR_VIDEO, TVR_TEXT): assert (c.span, c.unit) == (CONSISTENT.clip, 'seconds')


# --- what users get wrong

LINES, VIDEOS = 'tvr_zh_en_train_release.jsonl', 'tvr_video2dur_idx.json'
VIDEO, SUBTITLES = '*cat_cl-1.5.h5', 'bert_feature_en/sub_query/tvr_sub*.h5'
QUERIES = 'bert_feature_zh/sub_query/tvr_query*.h5'

# Each returns what does something wrong to a folder.

def edit(name, change):
    def do(folder): (folder/name).write_text(change((folder/name).read_text('utf-8')), 'utf-8')
    return do

def overwrite(name, content):
    def do(folder): (folder/name).write_bytes(content)
    return do

def record(number, **changes):
    "Change fields of a line of the training annotations; None removes a field."
    def change(text):
        lines = text.splitlines()
        r = {**json.loads(lines[number]), **changes}
        kept = {k: v for k, v in r.items() if v is not None}
        lines[number] = json.dumps(kept, ensure_ascii=False)
        return '\n'.join(lines)
    return edit(LINES, change)

def durations(change): return edit(VIDEOS, lambda text: json.dumps(change(json.loads(text))))

def train_1(entry): # of the durations
    return durations(lambda d: {**d, 'train': {**d['train'], 'train_1': entry}})

def no_annotations(folder):
    for p in folder.glob('*.jsonl'): p.unlink()

def features(name): return lambda folder: next((folder/'mtvr_features').rglob(name))

def rows(name, key, value=None):
    "Put other rows in the place of an item's; None removes it."
    def do(folder):
        with h5py.File(features(name)(folder), 'r+') as f:
            del f[key]
            if value is not None: f[key] = value
    return do

def group(name, key):
    def do(folder):
        rows(name, key)(folder)
        with h5py.File(features(name)(folder), 'r+') as f: f.create_group(key)
    return do

def cut(name):
    def do(folder):
        path = features(name)(folder)
        path.write_bytes(path.read_bytes()[:-1000])
    return do

def is_text(name): return lambda folder: features(name)(folder).write_text('x')

NAN = np.ones((5, 4))
NAN[0, 0] = np.nan
LATIN = '{"desc_id": 1, "descs": {"en": "é"}}'.encode('latin-1')

MISTAKES = { # what is done to the folder -> what the sentence must name
    'broken JSON': (edit(LINES, lambda t: t.replace('{"desc_id": 3,', '{"desc_id": 3', 1)),
                    'train_release.jsonl, line 4', 'not JSON'),
    'no record': (overwrite(LINES, b'[1, 2]\n'), 'line 1', 'is not a record'),
    'empty file': (overwrite(LINES, b''), 'train_release.jsonl', 'is empty'),
    'empty line': (edit(LINES, lambda t: t + '\n'), 'line 36', 'not JSON'),
    'wrong encoding': (overwrite(LINES, LATIN), 'is not UTF-8'),
    'no id': (record(2, desc_id=None), 'line 3', 'lacks desc_id'),
    'no moment': (record(2, ts=None), 'line 3', 'lacks ts'),
    'no video': (record(2, vid_name=None), 'line 3', 'lacks vid_name'),
    'no text': (record(2, descs=None), 'line 3', 'lacks descs'),
    'empty text': (record(2, descs={'en': 'a', 'zh': ''}), 'line 3', 'lacks descs'),
    'no Chinese': (record(2, descs={'en': 'a'}), 'query 2', "no text in 'zh'"),
    'same id twice': (record(2, desc_id=1), 'line 3', 'already given in line 2'),
    'end before start': (record(2, ts=[2., 1.]), 'line 3', 'ends at 1.0'),
    'nothing between start and end': (record(2, ts=[1., 1.]), 'line 3', 'ends at 1.0'),
    'start below zero': (record(2, ts=[-1., 1.]), 'line 3', 'impossible'),
    'moment is NaN': (record(2, ts=[0., float('nan')]), 'line 3', 'impossible'),
    'moment of three': (record(2, ts=[0., 1., 2.]), 'line 3', 'not a start and an end'),
    'moment is text': (record(2, ts=['0:01', '0:02']), 'line 3', 'not a start and an end'),
    'moment beyond the video': (record(2, ts=[0., 999.]), 'query 2', '999.0 s, but train_0 lasts'),
    'unknown type': (record(2, type='vo'), 'line 3', "no type 'vo'"),
    'unknown video': (record(2, vid_name='friends'), 'query 2', "'friends' is not in the corpus"),
    'durations missing': (lambda f: (f/VIDEOS).unlink(), 'no such file'),
    'durations are not JSON': (edit(VIDEOS, lambda t: t[:-9]), VIDEOS, 'not JSON'),
    'durations are a list': (durations(lambda d: [d]), 'holds no splits'),
    'durations lack the split': (durations(lambda d: {'val': d['val']}), "no split 'train'"),
    'durations of nothing': (durations(lambda d: {**d, 'train': {}}), 'train', 'holds no videos'),
    'duration without index': (train_1(4.2), 'train_1', 'not a duration and an index'),
    'duration zero': (train_1([0, 1]), 'train_1', 'not a duration and an index'),
    'same index twice': (train_1([99, 0]), 'one index'),
    'no annotations': (no_annotations, 'holds no tvr_zh_en_*_release.jsonl'),
    'HDF5 truncated': (cut(VIDEO), 'cat_cl-1.5.h5', 'truncated'),
    'HDF5 is text': (is_text(VIDEO), 'not an HDF5 file'),
    'video features missing': (rows(VIDEO, 'train_2'), 'video features of train_2', 'are missing'),
    'query features missing': (rows(QUERIES, '2'), 'query features (zh) of 2', 'are missing'),
    'query without tokens': (rows(QUERIES, '2', np.zeros((0, 4))),
                             'query features (zh) of 2', 'has no rows'),
    'video without clips': (rows(VIDEO, 'train_2', np.zeros((0, 6))),
                            'video features of train_2', 'has no rows'),
    'NaN': (rows(SUBTITLES, 'train_2', NAN), 'subtitle features (en) of train_2', 'NaN'),
    'wrong width': (rows(VIDEO, 'train_2', np.ones((5, 3))), 'train_2', 'width 3 instead of 6'),
    'one row is no matrix': (rows(VIDEO, 'train_2', np.ones(6)), 'train_2', 'shape'),
    'text in place of numbers': (rows(VIDEO, 'train_2', 'rows'), 'train_2', 'video features'),
    'a group': (group(VIDEO, 'train_2'), 'train_2', 'cannot be read'),
    'subtitles of another clip length': (rows(SUBTITLES, 'train_2', np.ones((90, 4))),
                                         'features of train_2', 'have'),
}
@pytest.mark.parametrize('mistake', MISTAKES)
def test_mistakes_in_a_folder(folder, mistake):
    change, *words = MISTAKES[mistake]
    change(folder)
    def use():
        data = MomentData(load_mtvr(folder))
        data.collate(range(len(data.queries)))
    refused(use, *words)

@pytest.mark.parametrize('make_it, words', [
    (lambda c: MomentData(c, 'test'), "no split 'test'"),
    (lambda c: VideoSet(c, 'test'), "no split 'test'"),
    (lambda c: MomentData(c, batch_videos=1), 'leave nothing to compare with'),
    (lambda c: MomentData(c, queries_per_video=0), 'teach nothing'),
    (lambda c: MomentData(c, by='show'), "no way to batch 'show'"),
    (lambda c: MomentData(replace(c, splits=dict(train=c.splits['train'][:5]))), 'about one video'),
    (lambda c: replace(c, splits=dict(train=[])), 'there are no queries'),
    (lambda c: replace(c, splits=dict(test=c.splits['val'])), "no durations of split 'test'"),
    (lambda c: replace(c, languages=()), 'there is no language'),
    (lambda c: replace(c, languages=('en', 'jp')), "no language of subtitles 'jp'"),
    (lambda c: replace(c, splits=dict(train=c.splits['train'][:2] * 2)), 'occurs twice'),
    (lambda c: query_features(c, c.splits['val'], 'de'), "no language 'de'"),
    (lambda c: query_features(c, [], 'en'), 'ask at least one'),
    (lambda c: query_features(c, ['who ?'], 'en'), 'no text encoder'),
    (lambda c: VideoSet(c, 'val').collate([]), 'there are no videos'),
    (lambda c: load_mtvr('nowhere'), 'no such folder'),
    (lambda c: H5Features('nowhere.h5'), 'no such file')])
def test_mistakes_in_a_call(corpus, make_it, words): refused(lambda: make_it(corpus), words)

def test_contract_and_clip_must_agree(corpus, tmp_path):
    store = FeatureStore.create(tmp_path/'store', corpus.video, FeatureContract(6, 16, 'frames'))
    refused(lambda: replace(corpus, video=store), 'covers 16 frames')
