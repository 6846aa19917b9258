"Recall of moments: official numbers to the last digit, bounds, agreement of languages, mistakes."
import gzip, json, math
from types import SimpleNamespace

import numpy as np
import pytest

from mcls_nb.core import DataError
from mcls_nb.retrieve.data import Query
from mcls_nb.retrieve.mtvr import read_annotations, read_durations
from mcls_nb.retrieve.spans import RELEASED_SPANS, SpanRule
from mcls_nb.retrieve.metrics import (best_window, bounds, consistency, evaluate, hits, moment_iou,
    recall_report)
from mcls_nb.retrieve.predictions import read_predictions, write_predictions


# --- the official script's numbers

@pytest.fixture(scope='module')
def official(shared_data):
    "Predictions, ground truth and metrics of the official script on real annotations."
    folder = shared_data.parent/'fixtures'/'mtvr_eval'
    if not folder.is_dir():
        pytest.skip(f'{folder} is absent: the official numbers are compared where it is.')
    truth = [json.loads(line) for line in (folder/'gt_A.jsonl').read_text('utf-8').splitlines()]
    metrics = json.loads((folder/'metrics_A.json').read_text())
    return read_predictions(folder/'pred_A.json.gz'), truth, metrics

def test_official_numbers(official):
    predictions, truth, metrics = official
    ours = evaluate(predictions, truth)
    # to the last digit, in the same order
    assert json.dumps(ours, indent=1) == json.dumps(metrics, indent=1)

def test_a_type_that_nobody_asks_has_no_recall(official):
    predictions, truth, _ = official
    truth = [t for t in truth if t['type'] != 't']
    ids = {t['desc_id'] for t in truth}
    some = dict(video2idx=predictions['video2idx'])
    for task in ('VCMR', 'SVMR', 'VR'):
        some[task] = [e for e in predictions[task] if e['desc_id'] in ids]
    by_type = evaluate(some, truth)['VCMR_by_type']
    del by_type['desc_type_ratio']
    assert all(math.isnan(v) == name.startswith('t-') for name, v in by_type.items())

def test_official_file_survives_arrays_and_writing(official, tmp_path):
    predictions, truth, metrics = official
    names = list(predictions['video2idx'])
    by_number = {i: k for k, i in enumerate(predictions['video2idx'].values())}
    def arrays(task):
        lists = {e['desc_id']: e['predictions'] for e in predictions[task]}
        out = np.zeros((4, len(truth), 150)) # the file has lists of up to 150
        out[0] = -1
        for row, t in enumerate(truth):
            for position, (video, *rest) in enumerate(lists[t['desc_id']]):
                out[:, row, position] = by_number[video], *rest
        return SimpleNamespace(video=out[0].astype(int), start=out[1], end=out[2], score=out[3])
    rankings = {task: arrays(task) for task in ('VCMR', 'SVMR', 'VR')}
    numbers = {v: k for k, v in enumerate(names)}
    assert evaluate(dict(video2idx=numbers, **rankings), truth) == metrics
    write_predictions(tmp_path/'p.json', rankings, truth, names, 'zh', predictions['video2idx'])
    again = read_predictions(tmp_path/'p.json')
    assert again['video2idx'] == predictions['video2idx']
    assert evaluate(again, truth) == metrics
    old, new = ({e['desc_id']: e['predictions'] for e in p['SVMR']} for p in (predictions, again))
    assert old == new # to the last bit, lists of all lengths
    assert again['VR'][0]['desc'] == truth[0]['descs']['zh']

def test_report_says_what_the_script_says(official):
    predictions, truth, metrics = official
    table = recall_report(dict(en=predictions), truth, n=200)
    for task in ('VCMR', 'SVMR', 'VR'):
        ours = table[(table.task == task) & (table.type == 'all')]
        np.testing.assert_allclose(ours.value.round(2), list(metrics[task].values()), atol=1e-9)
        of_types = table[(table.task == task) & (table.type != 'all')]
        official_name = lambda r: f'{r.type}-{"" if math.isnan(r.iou) else f"{r.iou}-"}r{r.k}'
        theirs = [metrics[f'{task}_by_type'][official_name(r)] for r in of_types.itertuples()]
        np.testing.assert_allclose(of_types.value.round(2), theirs, atol=1e-9)
    assert (table.low <= table.value).all() and (table.value <= table.high).all()
    assert table.floor.isna().all()
    row = table.query("task == 'SVMR' and iou == .5 and k == 1 and type == 'all'").iloc[0]
    # 1,000 queries at 14.5 %, weakly clustered: 2 x 1.96 x sqrt(.145 x .855 / 1000) = 4.4
    assert 3 < row.high - row.low < 7


# --- bounds of the real validation moments

@pytest.fixture(scope='module')
def validation(shared_data):
    "Queries and durations of the real validation set."
    folder = shared_data/'mtvr'
    if not folder.is_dir(): pytest.skip(f'{folder} is absent.')
    durations = read_durations(folder/'tvr_video2dur_idx.json', 'val')
    queries = read_annotations(folder/'tvr_zh_en_val_release.jsonl')
    return queries, {v: seconds for v, (seconds, _) in durations.items()}

def value(table, bound, iou, task='SVMR', k=1, type='all'):
    same = 'bound == @bound and iou == @iou and task == @task and k == @k and type == @type'
    row = table.query(same)
    return float(row.value.iloc[0])

@pytest.mark.parametrize('rule, bound, half, more', [
    (RELEASED_SPANS, 'own label', 79.6, 40.5), (SpanRule(), 'own label', 94.8, 73.1),
    (RELEASED_SPANS, 'own label, if legal', 70.4, 31.5),
    (RELEASED_SPANS, 'best span', 85.8, 69.7),
    (SpanRule(end_rule='released', min_clips=1), 'best span', 95.9, 84.8)],
    ids=['released', 'consistent', 'released, in the band', '3 to 16 clips', '1 to 16 clips'])
def test_bounds_of_real_moments(validation, rule, bound, half, more):
    table = bounds(*validation, rule, ks=(1,))
    assert round(value(table, bound, .5), 1) == half and round(value(table, bound, .7), 1) == more

def test_single_precision_moves_the_bounds_by_a_tenth_at_most(validation):
    queries, durations = validation
    start, end = np.array([q.moment for q in queries]).T
    clips = np.minimum(np.array([durations[q.video] for q in queries]) // 1.5 + 1, 100).astype(int)
    decoded = SpanRule().seconds(*SpanRule().label(np.stack([start, end], 1), clips))
    moments = (*decoded, start, end)
    single, double = (moment_iou(*(x.astype(kind) for x in moments)) for kind in ('f4', 'f8'))
    assert round(float(double.mean()), 3) == .782
    for threshold in (.5, .7):
        right_in_single, right_in_double = single >= np.float32(threshold), double >= threshold
        assert abs(right_in_single.mean() - right_in_double.mean()) <= .001

def test_floors_of_real_moments(validation):
    table = bounds(*validation, RELEASED_SPANS)
    windows = [value(table, name, .5) for name in ('same seconds', 'same part')]
    assert value(table, 'random', .5, k=1) < min(windows)
    assert value(table, 'random', .5, 'VCMR', 100) < 1
    assert value(table, 'same part', .5, 'VCMR', 100) < 100 * 100 / 2179
    vr = table[(table.task == 'VR') & (table.kind == 'floor') & (table.type == 'all')]
    np.testing.assert_allclose(vr.value, 100 * vr.k / 2179)
    assert set(table.type) == {'all', 'v', 't', 'vt'} and table.value.between(0, 100).all()


# --- a small corpus

NAMES = {f'v{i}': 10 + i for i in range(6)}
DURATIONS = {v: 30. + 3 * i for i, v in enumerate(NAMES)}

def queries(n=40, seed=0):
    rng = np.random.default_rng(seed)
    def query(i):
        video = f'v{rng.integers(6)}'
        moment = tuple(np.sort(rng.uniform(0, DURATIONS[video], 2)))
        type = ('v', 't', 'vt')[rng.integers(3)]
        return Query(i, video, moment, type, dict(en=f'question {i}', zh=f'问题 {i}'))
    return [query(i) for i in range(n)]

def lists(asked, task, seed=0):
    "Official lists of random length, some of them right."
    rng = np.random.default_rng((seed, len(task)))
    def entry(q):
        video = NAMES[q.video] if rng.random() < .5 else int(rng.integers(10, 16))
        moment = np.array(q.moment) + rng.normal(0, 2, 2)
        return [video, *moment.tolist(), .1]
    entries = lambda q: [entry(q) for _ in range(rng.integers(0, 30))]
    return [dict(desc_id=q.id, desc='', predictions=entries(q)) for q in asked]

@pytest.fixture
def asked(): return queries()
@pytest.fixture
def predictions(asked): return answer(asked)
def answer(asked, seed=0):
    of_tasks = {task: lists(asked, task, seed) for task in ('VCMR', 'SVMR', 'VR')}
    return dict(video2idx=NAMES, **of_tasks)

def test_records_of_both_kinds_mean_the_same(asked, predictions):
    records = [dict(desc_id=q.id, vid_name=q.video, ts=list(q.moment), type=q.type) for q in asked]
    assert evaluate(predictions, asked) == evaluate(predictions, records)

def test_order_of_lists_does_not_matter(asked, predictions):
    turned = {k: v if k == 'video2idx' else v[::-1] for k, v in predictions.items()}
    assert evaluate(turned, asked[::-1]) == evaluate(predictions, asked)

def test_recall_grows_with_k_and_falls_with_iou(asked, predictions):
    table = evaluate(predictions, asked)
    for task in ('VCMR', 'SVMR'):
        for iou in (.5, .7):
            recalls = [table[task][f'{iou}-r{k}'] for k in (1, 5, 10, 100)]
            assert np.all(np.diff(recalls) >= 0)
        for k in (1, 5, 10, 100): assert table[task][f'0.5-r{k}'] >= table[task][f'0.7-r{k}']

def test_hits_make_the_table(asked, predictions):
    h, table = hits(predictions, asked), evaluate(predictions, asked)
    assert list(h.columns) == ['task', 'iou', 'desc_id', 'video', 'type', 'rank']
    assert len(h) == 5 * len(asked)
    for (task, iou), group in h.groupby(['task', 'iou']):
        for k in (1, 10):
            percent = 100 * (group['rank'] <= k).mean()
            assert round(percent, 2) == table[task][f'{iou}-r{k}']

def other_video(q): return next(i for v, i in NAMES.items() if v != q.video)

def percents(asked, task, entries):
    "The table of a task where the entries of query q are `entries(q)`."
    lists = [dict(desc_id=q.id, predictions=entries(q)) for q in asked]
    return evaluate({'video2idx': NAMES, task: lists}, asked)[task]

def test_entries_after_the_hundredth_do_not_exist(asked):
    wrong, right = [NAMES['v0'], 900., 901., 0.], lambda q: [NAMES[q.video], *q.moment, 1.]
    late = lambda q: [wrong] * 100 + [right(q)]
    assert set(percents(asked, 'VCMR', late).values()) == {0.}
    # another video is dropped from the list in SVMR, but it is among the first hundred
    later = lambda q: [[other_video(q), 0., 1., 0.]] * 50 + late(q)[50:]
    assert set(percents(asked, 'SVMR', later).values()) == {0.}
    assert percents(asked, 'VCMR', lambda q: late(q)[1:])['0.7-r100'] == 100.

def test_other_videos_are_no_answers_where_the_video_is_given(asked):
    second = lambda q: [[other_video(q), *q.moment, 1.], [NAMES[q.video], *q.moment, .9]]
    svmr, vcmr, vr = (percents(asked, task, second) for task in ('SVMR', 'VCMR', 'VR'))
    assert (svmr['0.7-r1'], vcmr['0.7-r1'], vr['r1'], vr['r5']) == (100., 0., 0., 100.)

def test_thresholds_are_compared_in_single_precision():
    asked = [Query(0, 'v0', (0., 10.), 'v', dict(en='a'))]
    at = lambda end: percents(asked, 'SVMR', lambda q: [[10, 0., end, 1.]])['0.7-r1']
    below = 7 - 1e-9 # is 7 in single precision
    assert below / 10 < .7 and at(7.) == at(below) == 100. and at(6.9999) == 0.

def test_an_empty_list_is_a_miss(asked, predictions):
    assert set(percents(asked, 'VCMR', lambda q: []).values()) == {0.}
    first, *others = predictions['VR']
    one_empty = dict(predictions, VR=[dict(first, predictions=[]), *others])
    assert evaluate(one_empty, asked)['VR']['r100'] <= evaluate(predictions, asked)['VR']['r100']

def test_a_video_with_number_zero_is_not_padding():
    asked = [Query(i, v, (0., 3.), 'v', dict(en=v)) for i, v in enumerate('ab')]
    lists = [dict(desc_id=0, predictions=[]),
             dict(desc_id=1, predictions=[[0, 0, 0, 1.], [1, 0, 0, .5]])]
    table = evaluate(dict(video2idx=dict(a=0, b=1), VR=lists), asked)
    assert table['VR'] == {'r1': 0., 'r5': 50., 'r10': 50., 'r100': 50.}

def test_unknown_types_count_overall_only(asked, predictions):
    unknown = [Query(q.id, q.video, q.moment, '', q.texts) for q in asked]
    table = evaluate(predictions, unknown)
    assert table['VR'] == evaluate(predictions, asked)['VR']
    assert math.isnan(table['VR_by_type']['v-r1'])

@pytest.mark.parametrize('suffix', ['.json', '.json.gz'])
def test_files_say_what_was_answered(asked, tmp_path, suffix):
    rng = np.random.default_rng(0)
    shape, path = (len(asked), 20), tmp_path/f'p{suffix}'
    ranking = SimpleNamespace(
        video=rng.integers(-1, 6, shape), start=rng.random(shape, np.float32),
        end=2 + rng.random(shape, np.float32), score=rng.normal(size=shape).astype(np.float32))
    columns = (ranking.start, ranking.end, ranking.score)
    for x in columns: x[ranking.video < 0] = np.nan # as a search leaves it
    write_predictions(path, dict(VCMR=ranking, VR=ranking), asked, list(NAMES), 'zh', NAMES)
    assert list(tmp_path.iterdir()) == [path]
    back = read_predictions(path)
    assert list(back) == ['video2idx', 'VCMR', 'VR']
    assert back['VR'] == back['VCMR'] and back['VR'][3]['desc'] == '问题 3'
    for row, e in enumerate(back['VCMR']):
        there = ranking.video[row] >= 0
        assert np.array_equal([x[0] - 10 for x in e['predictions']], ranking.video[row][there])
        for i, column in enumerate(columns, 1):
            written = np.array([x[i] for x in e['predictions']], np.float32)
            assert np.array_equal(written, column[row][there])

def test_report_and_bounds_stand_side_by_side(asked, predictions):
    table = recall_report(dict(en=predictions, zh=predictions), asked, bounds(asked, DURATIONS))
    assert list(table.columns) == 'language task iou k type value low high floor ceiling'.split()
    assert len(table) == 2 * 5 * 4 * 4 and not table.drop(columns='iou').isna().any(axis=None)
    assert (table.floor <= table.ceiling + 1e-9).all()
    assert (table[table.task == 'VR'].ceiling == 100).all()
    en, zh = (table[table.language == l].drop(columns='language') for l in ('en', 'zh'))
    assert en.reset_index(drop=True).equals(zh.reset_index(drop=True))

def test_interval_is_that_of_drawing_videos():
    rng = np.random.default_rng(0)
    asked = []
    for v, n in enumerate(rng.integers(1, 30, 6)):
        asked += [Query(100 * v + j, f'v{v}', (0., 3.), 'v', dict(en='x')) for j in range(n)]
    easy = np.array([.9, .1, .5, .3, .8, .2])[[int(q.video[1]) for q in asked]]
    right = rng.random(len(asked)) < easy
    lists = []
    for q, ok in zip(asked, right):
        lists.append(dict(desc_id=q.id, predictions=[[NAMES[q.video] if ok else 99, 0, 0, 1.]]))
    predictions = dict(video2idx=NAMES | dict(z=99), VR=lists)
    row = recall_report(dict(en=predictions), asked, ks=(1,), n=20000).iloc[0]
    by_video = [right[[q.video == v for q in asked]] for v in NAMES]
    recall = lambda videos: 100 * np.concatenate([by_video[v] for v in videos]).mean()
    drawn = [recall(rng.integers(0, 6, 6)) for _ in range(20000)]
    np.testing.assert_allclose([row.low, row.high], np.percentile(drawn, [2.5, 97.5]), atol=1.5)

def test_one_video_has_no_interval():
    one = [Query(i, 'v0', (1., 5. + i), 'v', dict(en='x')) for i in range(3)]
    table = recall_report(dict(en=dict(video2idx=NAMES, VR=lists(one, 'VR'))), one)
    assert table.low.isna().all() and table.value.notna().all()


# --- from a search to the table

def test_a_search_is_evaluated_as_it_comes(tmp_path):
    from mcls_nb.retrieve.data import MomentCorpus, VideoSet, query_features
    from mcls_nb.retrieve.encoders import MXML, XMLConfig
    from mcls_nb.retrieve.index import MomentIndex
    rng, asked, tasks = np.random.default_rng(0), queries(), ('VCMR', 'SVMR', 'VR')
    rows = lambda n, d: rng.normal(size=(n, d)).astype(np.float32)
    clips = {v: int(d // 1.5) + 1 for v, d in DURATIONS.items()}
    of_clips = lambda d: {v: rows(n, d) for v, n in clips.items()}
    frames, subtitles = of_clips(12), {l: of_clips(8) for l in ('en', 'zh')}
    texts = {l: {str(q.id): rows(5, 8) for q in asked} for l in ('en', 'zh')}
    corpus = MomentCorpus('small', ('en', 'zh'), dict(val=asked), dict(val=DURATIONS),
                          frames, subtitles, texts)
    model = MXML(XMLConfig(d_video=12, d_text=8, d=16, heads=2)).eval()
    videos, answers = VideoSet(corpus, 'val'), {}
    own = [videos.index[q.video] for q in asked]
    for l in corpus.languages:
        index, path = MomentIndex.build(model, videos, l), tmp_path/f'{l}.json'
        encoded = model.encode_queries(*query_features(corpus, asked, l), l)
        rankings = index.search(encoded, tasks, own=own, rule=SpanRule(), alpha=20., merge='mean')
        answers[l] = dict(video2idx=videos.index, **rankings)
        write_predictions(path, rankings, asked, index.names, l, NAMES)
        table = evaluate(answers[l], asked)
        assert table['VR']['r10'] == 100. # six videos in all
        assert evaluate(read_predictions(path), asked) == table
    table = recall_report(answers, asked, bounds(asked, DURATIONS), n=200)
    assert (table.value <= table.ceiling + 1e-9).all() and table.value.max() == 100.
    assert consistency(answers['en'], answers['zh'], 6).overlap.between(0, 100).all()


# --- windows and agreement

@pytest.mark.parametrize('iou', [.3, .5, .7, 1.])
@pytest.mark.parametrize('n', [1, 2, 50])
def test_window_is_right_where_it_claims_to_be(iou, n):
    rng = np.random.default_rng(n)
    start = rng.random(n) * 20
    end = start + rng.random(n) * 9 + .1
    s, e, share = best_window(start, end, iou)
    assert share == (moment_iou(s, e, start, end) >= iou).mean()
    if iou < 1: assert share >= 1 / n
    grid = np.stack(np.meshgrid(np.linspace(0, 20, 41), np.linspace(.1, 30, 60)), -1)
    s, e = grid.reshape(-1, 2, 1).transpose(1, 0, 2) # windows on a grid, each against all moments
    assert share >= (moment_iou(s, e, start, end) >= iou).mean(1).max() - .02

def test_windows_may_be_picked_elsewhere(asked):
    here = bounds(asked, DURATIONS)
    there = bounds(asked, DURATIONS, picked_on=(queries(40, 1), DURATIONS))
    both = here.merge(there, on=['kind', 'bound', 'task', 'iou', 'k', 'type'])
    constant = both.bound.isin(['same seconds', 'same part'])
    assert (both[~constant].value_x == both[~constant].value_y).all()
    of_all = both[constant & (both.type == 'all') & (both.task == 'SVMR')]
    assert (of_all.value_x - of_all.value_y).min() >= -3

def rows(*entries): # [video, start, end] each, a list a query
    width = max(map(len, entries))
    table = np.array([list(e) + [[-1, 0., 0.]] * (width - len(e)) for e in entries], float)
    video, start, end = table.transpose(2, 0, 1)
    return SimpleNamespace(video=video.astype(int), start=start, end=end, score=end)

def test_agreement_by_hand():
    a = rows([[10, 0, 4], [11, 0, 9], [12, 5, 8]], [[13, 1, 2]])
    b = rows([[10, 0, 3], [13, 0, 9], [12, 9, 12]], [[13, 1, 2], [10, 1, 2], [11, 1, 2]])
    table = consistency(*(dict(video2idx=NAMES, VR=x, VCMR=x) for x in (a, b)), k=3)
    # videos: 2 + 2 of 6 entries have a partner in the first query, 1 + 1 of 4 in the second
    # moments at both thresholds: only 0 to 4 beside 0 to 3 (3/4), and 1 to 2 beside itself
    np.testing.assert_allclose(table.overlap, [100 * (1/3 + 1/2) / 2] * 2 + [100 * (2/3 + 1/2) / 2])
    assert table.top1.tolist() == [100., 100., 100.]
    assert table.task.tolist() == ['VCMR', 'VCMR', 'VR']

def test_agreement_knows_no_direction(asked, predictions):
    other = answer(asked, seed=5)
    ab, ba = consistency(predictions, other), consistency(other, predictions)
    assert ab.equals(ba) and ab.overlap.between(0, 100).all()
    aa = consistency(predictions, predictions)
    share = 100 * np.mean([bool(e['predictions']) for e in predictions['VR']])
    np.testing.assert_allclose(aa[aa.task == 'VR'].top1, share) # empty lists agree about nothing

def test_agreement_of_many_queries_goes_in_parts():
    rng = np.random.default_rng(0)
    one, other = (rows(*([[int(v), 0, 3]] for v in rng.integers(10, 12, 1100))) for _ in range(2))
    table = consistency(dict(video2idx=NAMES, VR=one), dict(video2idx=NAMES, VR=other))
    np.testing.assert_allclose(table.top1, 100 * (one.video == other.video).mean())


# --- what users get wrong

def with_row(task, row): # the first list of a task is replaced by one entry
    return lambda p: dict(p, **{task: [dict(p[task][0], predictions=[row]), *p[task][1:]]})

def without(d, key): return {k: v for k, v in d.items() if k != key}

def only_vr(ranking): return lambda p: dict(video2idx=NAMES, VR=ranking)
FLAT = SimpleNamespace(**{name: np.zeros(40) for name in ('video', 'start', 'end', 'score')})

MISTAKES = { # what is done to the predictions -> what the sentence must say
    'queries missing': (lambda p: dict(p, VR=p['VR'][3:]),
        r'VR predictions: 3 queries have no list \(0, 1, 2\); answer every query'),
    'queries of another split': (
        lambda p: dict(p, VR=p['VR'] + [dict(desc_id=99, predictions=[])]),
        r'1 lists answer no query .*\(99\)'),
    'a query twice': (lambda p: dict(p, SVMR=p['SVMR'] + p['SVMR'][4:5]),
        'SVMR predictions: query 4 occurs twice'),
    'unknown task': (lambda p: dict(p, VMCR=[]), "no task 'VMCR'; did you mean"),
    'no task': (lambda p: dict(video2idx=NAMES), 'there is no task'),
    'no video2idx': (lambda p: dict(VR=p['VR']), 'no dictionary video2idx'),
    'not a dictionary': (lambda p: p['VR'], 'no dictionary video2idx'),
    'video2idx without a video': (lambda p: dict(p, video2idx=without(NAMES, 'v3')),
        "'v3', which video2idx does not name"),
    'unknown video': (with_row('VCMR', [77, 0, 3, .5]), 'query 0 is answered by video 77'),
    'name instead of number': (with_row('VCMR', ['v1', 0, 3, .5]), 'not a number'),
    'NaN score': (with_row('VCMR', [10, 0, 3, math.nan]), 'a time or score of query 0 is NaN'),
    'infinite time': (with_row('SVMR', [10, 0, math.inf, 1.]),
        'a time or score of query 0 is NaN or infinite'),
    'no score': (with_row('VR', [10, 0, 3]), 'not a list of four numbers'),
    'entries are numbers': (with_row('VR', 10), 'not a list of four numbers'),
    'no predictions': (lambda p: dict(p, VR=[without(e, 'predictions') for e in p['VR']]),
        'entry 0 is not a query with its list'),
    'rankings without rows': (only_vr(FLAT), 'do not hold lists for 40 queries'),
    'rankings for fewer queries': (only_vr(rows([[10, 0, 0]])), 'do not hold lists for 40 queries'),
}

@pytest.mark.parametrize('name', MISTAKES)
def test_mistakes_in_predictions(asked, predictions, name):
    change, says = MISTAKES[name]
    with pytest.raises(DataError, match=says): evaluate(change(predictions), asked)

RECORD = dict(desc_id=0, vid_name='v0', ts=[1., 2.], type='v')

@pytest.mark.parametrize('record, says', [
    (dict(RECORD, ts=[8., 2.]), 'the moment of query 0 goes from 8 s to 2 s'),
    (dict(RECORD, ts=[math.nan, 2.]), 'the moment of query 0 goes from nan s'),
    (dict(desc_id=0, desc='hidden'), 'record 0 lacks desc_id, vid_name or ts'),
    (dict(RECORD, type='tv'), "no type of query 'tv'"),
    (dict(RECORD, ts=[1.]), 'is not two numbers'),
    (Query(0, '', None, 'v', dict(en='x')), 'the moment of query 0 is hidden')])
def test_mistakes_in_the_ground_truth(record, says):
    predictions = dict(video2idx=NAMES, VR=[dict(desc_id=0, predictions=[])])
    with pytest.raises(DataError, match=says): evaluate(predictions, [record])

def test_no_query(predictions):
    with pytest.raises(DataError, match='there is no query'): evaluate(predictions, [])

@pytest.mark.parametrize('options, says', [
    (dict(ks=(0,)), 'k = 0 cannot be counted'), (dict(ks=(1.5,)), 'k = 1.5'),
    (dict(ks=(101,)), 'k = 101 .*1 to 100'), (dict(ks=()), 'there is no k'),
    (dict(ious=(0.,)), 'an IoU of 0.0 is no threshold'), (dict(ious=(50,)), 'an IoU of 50')])
def test_mistakes_in_options(asked, predictions, options, says):
    with pytest.raises(DataError, match=says): evaluate(predictions, asked, **options)
    with pytest.raises(DataError, match=says): recall_report(dict(en=predictions), asked, **options)

@pytest.mark.parametrize('content, says', [
    (b'{"video2idx": ', 'not JSON'), (b'\xff\xfe', 'not JSON'), (b'', 'not JSON'),
    (b'[]', 'no dictionary video2idx'), (b'{"video2idx": {}, "VR": 3}', 'VR is not a list'),
    (b'{"video2idx": {}, "VR": [3]}', 'entry 0 is not a query')])
def test_mistakes_in_files(tmp_path, content, says):
    (tmp_path/'p.json').write_bytes(content)
    with pytest.raises(DataError, match=says): read_predictions(tmp_path/'p.json')
    (tmp_path/'p.json.gz').write_bytes(gzip.compress(content))
    with pytest.raises(DataError, match=says): read_predictions(tmp_path/'p.json.gz')

def test_broken_archives(tmp_path):
    whole = gzip.compress(json.dumps(dict(video2idx=NAMES, VR=[])).encode())
    for content in (whole[:-6], b'{}', whole[:12] + b'\x00\xff' * 20):
        (tmp_path/'p.json.gz').write_bytes(content)
        with pytest.raises(DataError, match='not JSON'): read_predictions(tmp_path/'p.json.gz')
    with pytest.raises(DataError, match='no such file'): read_predictions(tmp_path/'q.json')

def test_nothing_wrong_is_written(asked, tmp_path):
    path, names = tmp_path/'p.json', list(NAMES)
    same_for_all = lambda entry: rows(*([entry] for _ in asked))
    sound, bad = same_for_all([0, 0, 3]), same_for_all([0, 0, math.nan])
    for rankings, numbers, says in (
            (dict(VR=bad), NAMES, 'NaN'), (dict(VCRM=sound), NAMES, 'no task'),
            (dict(VR=sound), {}, '6 videos have no number'),
            (dict(VR=rows([[0, 0, 3]])), None, 'for 40 queries'),
            (dict(VR=same_for_all([6, 0, 3])), None, 'query 0 is answered by video 6')):
        with pytest.raises(DataError, match=says):
            write_predictions(path, rankings, asked, names, video2idx=numbers)
    with pytest.raises(DataError, match="no language 'pt'"):
        write_predictions(path, dict(VR=sound), asked, names, 'pt')
    assert not list(tmp_path.iterdir())

def test_bounds_need_durations(asked):
    with pytest.raises(DataError, match='has no duration'): bounds(asked, dict(v0=30.))

def test_agreement_needs_the_same_queries(asked, predictions):
    fewer = dict(predictions, VR=predictions['VR'][2:])
    with pytest.raises(DataError, match='2 queries have no list'):
        consistency(predictions, fewer)
    arrays = dict(predictions, VCMR=rows([[10, 0, 1]]))
    with pytest.raises(DataError, match='arrays, the other official'):
        consistency(predictions, arrays)
