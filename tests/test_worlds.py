"Breadth for `worlds`: many seeds and sizes, fresh processes, knobs at their ends, bad input."
import collections, dataclasses, itertools, json, os, re, subprocess, sys

import numpy as np, pytest
from mcls_nb.core import DataError, override
from mcls_nb.worlds.base import LEXICONS, lexicon
from mcls_nb.worlds.how2 import CLAUSES, SLOTS, VIEWS, How2World, How2WorldConfig, fill_clause
from mcls_nb.worlds.tv import (MTVR_QUANTILES, BilingualEmbedding, TVWorld, TVWorldConfig,
                               mtvr_quantile)

SPLITS = ('pretrain', 'train', 'val', 'test')
FEW = dict(pretrain=30, train=30, val=10, test=30)
SMALL = How2WorldConfig(**FEW)
TINY = How2WorldConfig(
    topics=3, actions=4, objects=4, tools=2, adjectives=4, people=4,
    distractors_min=0, distractors_max=1, **FEW)
LARGE = How2WorldConfig(
    topics=24, actions=12, objects=16, tools=8, adjectives=100, people=200,
    fillers_max=12, d_video=128, **FEW)
WHOLE = How2WorldConfig( # the lexicon
    topics=12, actions=6, objects=8, tools=4, adjectives=12, people=12)
WORLDS = pytest.mark.parametrize('cfg', [SMALL, TINY, LARGE], ids=['small', 'tiny', 'large'])
SEEDS = pytest.mark.parametrize('seed', [0, 1, 2, 3])

def words(world):
    return [*world.adjectives, *world.people, *(w for t in world.topics for w in t.words())]

def key(s):
    return (s.id, s.transcripts, s.summary, s.slots, s.shown, s.frames, s.asides,
            s.video.tobytes())

def keys(world, split): return [key(s) for s in world.split(split)]

def in_fresh_process(script, hash_seed):
    "What a script prints when Python orders its sets by another seed."
    env = os.environ | {'PYTHONHASHSEED': hash_seed}
    return subprocess.check_output([sys.executable, '-c', script], env=env, text=True).strip()

def test_lexicons_are_readable_files_with_one_entry_a_line():
    for name in LEXICONS:
        path = os.path.join(os.path.dirname(sys.modules['mcls_nb.worlds'].__file__),
                            f'{name}_lexicon.json')
        with open(path, encoding='utf-8') as file: text = file.read()
        assert json.loads(text) == lexicon(name) and '\\u' not in text
        assert max(map(len, text.split('\n'))) <= 160 and text.count('\n') > 200

SCRIPT = '''
import hashlib
from mcls_nb.worlds.how2 import How2World, How2WorldConfig
digest = hashlib.sha256()
for topics in (6, 24):
    world = How2World(How2WorldConfig(topics=topics, actions=8, train=20), seed=3)
    for s in world.split('train'):
        told = s.transcripts, s.summary, s.slots, s.shown, s.frames, s.asides
        digest.update(repr(told).encode())
        digest.update(s.video.tobytes())
    digest.update(repr(world.oracle_summaries('train', 'video')).encode())
print(digest.hexdigest())
'''
def test_fresh_processes_make_the_same_world():
    first, second = (in_fresh_process(SCRIPT, seed) for seed in ('1', '2'))
    assert first == second and len(first) == 64

@WORLDS
def test_more_samples_leave_the_first_ones(cfg):
    more = How2World(dataclasses.replace(cfg, pretrain=50, train=40, val=30, test=60))
    for split in SPLITS:
        assert keys(more, split)[:getattr(cfg, split)] == keys(How2World(cfg), split)

def test_the_order_of_asking_does_not_matter():
    a, b = How2World(SMALL), How2World(SMALL)
    for split in SPLITS: a.split(split)
    assert keys(b, 'test') == keys(a, 'test')
    assert key(b.sample('train', 7)) == keys(a, 'train')[7]
    assert a.split('val') is a.split('val')

def test_seeds_make_other_worlds():
    a, b = How2World(SMALL, 0), How2World(SMALL, 1)
    assert a.split('test')[0].summary != b.split('test')[0].summary
    assert a.topics != b.topics

@WORLDS
@SEEDS
def test_no_summary_is_in_two_splits(cfg, seed):
    world = How2World(cfg, seed)
    homes = collections.defaultdict(set)
    for split in SPLITS:
        for s in world.split(split): homes[tuple(s.slots.values())].add(split)
    assert all(len(h) == 1 for h in homes.values())

@WORLDS
@SEEDS
def test_samples_keep_their_word(cfg, seed):
    world = How2World(cfg, seed)
    word = {w.en: w for w in words(world)}
    for split in SPLITS:
        for s in world.split(split):
            assert tuple(s.slots) == tuple(s.shown) == SLOTS
            assert len(set(s.slots.values())) == len(SLOTS)
            assert set(s.transcripts) == ({'en'} if split == 'pretrain' else {'en', 'pt'})
            assert s.video.dtype == np.float32 and np.isfinite(s.video).all()
            assert s.video.shape == (len(s.frames), cfg.d_video)
            assert cfg.frames_min <= len(s.frames) <= cfg.frames_max
            tokens = s.summary.split(' ')
            assert 15 <= len(tokens) <= 24 and tokens[-1] == '.'
            assert set(s.slots.values()) <= set(tokens)
            for language, text in s.transcripts.items():
                assert text == ' '.join(text.lower().split())
                assert re.fullmatch(r"[\w'\-,.? ]+", text)
                tokens = set(text.split())
                said = {slot for slot, w in s.slots.items() if word[w].forms(language) & tokens}
                assert said == {slot for slot in SLOTS if 'text' in s.shown[slot]}
                for aside in (w for ws in s.asides.values() for w in ws):
                    assert aside not in s.slots.values() and word[aside].forms(language) & tokens
            seen = {slot for f in s.frames if f.kind == 'step' for slot in f.shows}
            assert seen == {slot for slot in SLOTS if 'video' in s.shown[slot]}
            assert not seen & {'adjective', 'person'}
            for f in s.frames:
                if f.kind == 'step': assert f.shows.items() <= s.slots.items()
                if f.kind == 'aside': assert not set(f.shows.values()) & set(s.slots.values())

@WORLDS
@SEEDS
def test_no_form_stands_for_two_words(cfg, seed):
    world = How2World(cfg, seed)
    for language in ('en', 'pt'):
        forms = [f for w in words(world) for f in w.forms(language)]
        assert len(forms) == len(set(forms)) and set(forms) == world.forms[language]
        assert all(re.fullmatch(r'[^\W\d_]+(-[^\W\d_]+)*', f) for f in forms)

def test_coined_words_are_unlike_all_others():
    world = How2World(LARGE)
    real = {f for forms in How2World(WHOLE).forms.values() for f in forms}
    coined = [f for w in words(world) if w.en not in real for f in {*w.forms('en'), *w.forms('pt')}]
    assert len(coined) == len(set(coined)) > 2000 and not real & set(coined)

def test_small_worlds_have_real_words_only():
    real = {w.en for w in words(How2World(WHOLE))}
    assert len(real) == 12 * (1 + 6 + 8 + 4) + 12 + 12
    for seed in range(5): assert {w.en for w in words(How2World(SMALL, seed))} <= real

ARTICLES = dict.fromkeys('o um este meu seu nosso do no'.split(), 'm')
ARTICLES |= dict.fromkeys('a uma esta minha sua nossa da na'.split(), 'f')
@WORLDS
def test_portuguese_agrees(cfg):
    world = How2World(dataclasses.replace(cfg, noise_pt=0., train=300))
    nouns = {w.pt: w for w in words(world) if w.gender}
    adjectives = {f: w for w in world.adjectives for f in (w.pt, w.feminine)}
    articles = agreeing = 0
    for s in world.split('train'):
        tokens = s.transcripts['pt'].split()
        for before, noun, after in zip(tokens, tokens[1:], tokens[2:]):
            gender = 'f' if noun == 'coisa' else nouns[noun].gender if noun in nouns else None
            if gender is None: continue
            if before in ARTICLES:
                articles += 1
                assert ARTICLES[before] == gender, f'{before} {noun}'
            if after in adjectives:
                agreeing, adjective = agreeing + 1, adjectives[after]
                due = adjective.feminine if gender == 'f' else adjective.pt
                assert after == due, f'{noun} {after}'
        assert not re.search(r'\b(de (o|a)|em (o|a)|para os|por (o|a)) ', s.transcripts['pt'])
    assert articles > 1000 and agreeing > 100

def test_every_step_bends_in_both_languages():
    world = How2World(SMALL)
    topic, adjective = world.topics[0], world.adjectives[0]
    action, thing, tool = topic.action[0], topic.object[0], topic.tool[0]
    for template in CLAUSES['step'] + CLAUSES['then']:
        for ahead in (False, True):
            en, pt = fill_clause(template, ahead, adjective, tool, action=action, object=thing)
            assert not re.search(r'[{}|]|  ', en + pt) and en.endswith(' .') and pt.endswith(' .')
            assert action.forms('en') & set(en.split()) and action.forms('pt') & set(pt.split())

def test_knobs_of_one_part_leave_the_others():
    base = keys(How2World(SMALL), 'train')
    for changes, same in ( # positions in `key`
            (dict(sigma=.1, see_tool=.1), (1, 2, 3, 6)),
            (dict(d_video=32), (1, 2, 3, 4, 5, 6)),
            (dict(video_noise_only=True), (1, 2, 3, 6)),
            (dict(noise_en=.2, fillers_max=9), (2, 3, 4, 5, 7)),
            (dict(text_tells_all=True), (2, 3, 5, 6, 7))):
        changed = keys(How2World(override(SMALL, **changes)), 'train')
        for a, b in zip(base, changed): assert all(a[k] == b[k] for k in same), changes

def test_saying_more_only_adds():
    less, more = (How2World(override(SMALL, say_action=p, say_tool=p)) for p in (.3, .6))
    for a, b in zip(less.split('train'), more.split('train')):
        assert all(set(a.shown[slot]) <= set(b.shown[slot]) for slot in SLOTS)

def test_salience_and_visibility_are_the_shares_asked_for():
    world = How2World(How2WorldConfig(train=1500, noise_pt=0., noise_en=0.))
    for slot in SLOTS:
        said = np.mean(['text' in s.shown[slot] for s in world.split('train')])
        assert abs(said - getattr(world.cfg, f'say_{slot}')) < .05
        seen = np.mean(['video' in s.shown[slot] for s in world.split('train')])
        asked = getattr(world.cfg, f'see_{slot}', 0.)
        assert asked - .08 < seen < asked + .05 # a visible thing may miss every frame by chance

def test_default_size_of_texts():
    world = How2World(How2WorldConfig(train=400))
    length = lambda language: np.mean([len(s.transcripts[language].split())
                                       for s in world.split('train')])
    en, pt = length('en'), length('pt')
    assert 48 < en < 60 and 45 < pt < 60

def test_noise_changes_only_what_is_no_slot():
    clean = How2World(override(SMALL, noise_en=0., noise_pt=0.))
    noisy = How2World(override(SMALL, noise_en=1., noise_pt=.0))
    for a, b in zip(clean.split('test'), noisy.split('test')):
        assert a.transcripts['pt'] == b.transcripts['pt'] and a.shown == b.shown
        kept = lambda s: [w for w in s.transcripts['en'].split() if w in clean.forms['en']]
        assert kept(a) == kept(b)
        assert len(a.transcripts['en']) != len(b.transcripts['en'])

def test_frames_hold_what_they_show():
    world = How2World(override(SMALL, sigma=0.))
    for s in world.split('test'):
        for x, f in zip(s.video, s.frames):
            due = sum((world.vectors[w] for w in f.shows.values()), np.zeros(64))
            np.testing.assert_allclose(x, due, atol=1e-5)

def test_things_shown_have_unit_size():
    world = How2World(LARGE)
    size = lambda ws: np.sqrt(np.mean([world.vectors[w.en]**2 for w in ws]))
    assert abs(size([w for t in world.topics for w in t.object]) - 1) < .1
    assert abs(size([t.topic[0] for t in world.topics]) - .5) < .1

def test_text_tells_all():
    world = How2World(override(SMALL, text_tells_all=True))
    assert all('text' in s.shown[slot] for s in world.split('train') for slot in SLOTS)
    assert world.oracle_summaries('train', 'text') == [s.summary for s in world.split('train')]

def test_video_noise_only():
    world = How2World(override(SMALL, video_noise_only=True))
    x = np.concatenate([s.video for s in world.split('train')])
    assert all('video' not in m for s in world.split('train') for m in s.shown.values())
    assert abs(x.mean()) < .02 and abs(x.std() - .6) < .02
    blind, nothing = (world.ceiling('train', sees) for sees in ('video', 'nothing'))
    assert blind == nothing

@WORLDS
@pytest.mark.parametrize('sees', VIEWS)
def test_bounds_agree_with_counting(cfg, sees):
    world = How2World(dataclasses.replace(cfg, test=150))
    hits = []
    for seed in range(4):
        for s, text in zip(world.split('test'), world.oracle_summaries('test', sees, seed)):
            hits.append([w in text.split() for w in s.slots.values()])
    bound = world.ceiling('test', sees)
    for slot, hit in zip(SLOTS, np.mean(hits, 0)): assert abs(hit - bound[slot]) < .08, slot

@WORLDS
def test_bounds_are_ordered(cfg):
    world = How2World(cfg)
    nothing, topic, text, video, both = (world.ceiling('test', sees)['mean'] for sees in VIEWS)
    assert nothing < topic < min(text, video)
    assert max(text, video) < both < 1

def test_floors_keep_the_sentence_and_change_its_words():
    world = How2World(How2WorldConfig(test=100))
    floors = world.floors('test')
    fixed = lambda text: [w for w in text.split() if w not in world.forms['en']]
    for s, text in zip(world.split('test'), floors['template']):
        assert fixed(s.summary) == fixed(text)
        assert s.summary != text
    again, other = world.floors('test'), world.floors('test', seed=1)
    assert floors['template'] == again['template'] != other['template']

def test_explain_reads_well():
    world = How2World(SMALL)
    for split in SPLITS:
        text, s = world.explain(split, 3), world.sample(split, 3)
        assert text.startswith(f'{split}-3\n') and ('Portuguese' in text) == (split != 'pretrain')
        assert text.count('\nframe ') == len(s.frames)
        assert all(len(line) <= 120 for line in text.split('\n'))

@pytest.mark.parametrize('changes, message', [
    (dict(test=-1), 'parameter test: -1 is too small'),
    (dict(topics=1), 'parameter topics'),
    (dict(actions=2), 'parameter actions'),
    (dict(tools=1), 'parameter tools'),
    (dict(see_tool=-.1), 'is not a probability'),
    (dict(irrelevant=1.5), 'is not a probability'),
    (dict(noise_en=float('nan')), 'not a valid float'),
    (dict(sigma=float('inf')), 'not a valid float'),
    (dict(sigma=-1.), 'is too small'),
    (dict(topics=2.5), 'not a valid int'),
    (dict(topics='six'), 'not a valid int'),
    (dict(text_tells_all='yes'), 'not a valid bool'),
    (dict(train=True), 'not a valid int'),
    (dict(frames_min=20), 'is more than frames_max'),
    (dict(fillers_min=9), 'is more than fillers_max'),
    (dict(d_video=0), 'is too small'),
    (dict(topics=2, actions=3, objects=3, tools=2, adjectives=1, people=1),
     'too few for four splits')])
def test_impossible_worlds(changes, message):
    with pytest.raises(DataError, match=message): How2WorldConfig(**changes)

def test_wrong_questions():
    world = How2World(override(SMALL, val=0))
    with pytest.raises(DataError, match="did you mean 'train'"): world.split('trian')
    with pytest.raises(DataError, match='there is no split'): world.explain('dev', 0)
    with pytest.raises(DataError, match='there is no view'): world.ceiling('test', 'audio')
    with pytest.raises(DataError, match='there is no view'): world.oracle_summaries('test', 'audio')
    with pytest.raises(DataError, match='there are no samples'): world.ceiling('val')
    with pytest.raises(DataError, match='-1 is no index'): world.sample('test', -1)
    assert world.split('val') == []


# --- the TV world

TV_SPLITS, TV_FEW = ('train', 'val', 'test'), dict(train=30, val=10, test=25)
TV = TVWorldConfig(**TV_FEW)
TV_LITTLE = TVWorldConfig(
    shows=2, cast=2, actions=8, objects=12, places=3, topics=5,
    show_objects=8, show_places=2, show_topics=3, d_video=16, d_text=24, **TV_FEW)
TV_LONG = TVWorldConfig(time_scale=1., queries=7, pace=3., d_video=32, d_text=32, **TV_FEW)
TVS = pytest.mark.parametrize('cfg', [TV, TV_LITTLE, TV_LONG], ids=['default', 'little', 'long'])

def tv_key(v):
    return (v.name, v.show, v.duration, v.scenes, v.lines, v.queries,
            *(x.tobytes() for x in (v.video, v.subtitles['en'], v.subtitles['zh'])))

def tv_keys(world, split): return [tv_key(v) for v in world.split(split)]

TV_SCRIPT = '''
import hashlib
from mcls_nb.worlds.tv import TVWorld, TVWorldConfig
digest, world = hashlib.sha256(), TVWorld(TVWorldConfig(train=20), seed=3)
for v in world.split('train'):
    said = [(l.start, l.end, l.texts, {k: sorted(c) for k, c in l.says.items()}) for l in v.lines]
    asked = [(q.moment, q.texts, {k: sorted(c) for k, c in q.asks.items()}) for q in v.queries]
    happens = [s[:11] + (sorted(s.seen),) for s in v.scenes]
    digest.update(repr((v.name, happens, said, asked)).encode())
    for x in (v.video, *v.subtitles.values(), world.embed('who lifts the zzz ?', 'en')):
        digest.update(x.tobytes())
print(digest.hexdigest(), world.matching('train', 'both')['R@1'])
'''
def test_tv_is_the_same_in_fresh_processes():
    first, second = (in_fresh_process(TV_SCRIPT, seed) for seed in ('1', '2'))
    assert first == second and len(first) > 64

@TVS
def test_tv_does_not_depend_on_sizes_and_order(cfg):
    more, again = TVWorld(dataclasses.replace(cfg, train=40, val=30, test=60)), TVWorld(cfg)
    for split in TV_SPLITS:
        assert tv_keys(more, split)[:getattr(cfg, split)] == tv_keys(TVWorld(cfg), split)
    assert tv_key(again.sample('train', 7)) == tv_keys(more, 'train')[7]
    assert again.split('val') is again.split('val')
    assert tv_keys(TVWorld(cfg, 1), 'val') != tv_keys(TVWorld(cfg), 'val')

@TVS
@SEEDS
def test_no_scene_is_in_two_tv_splits(cfg, seed):
    world = TVWorld(cfg, seed)
    shown = [{(v.show, s.who, s.action, s.object, s.place)
              for v in world.split(split) for s in v.scenes} for split in TV_SPLITS]
    for a, b in itertools.combinations(shown, 2): assert not a & b
    names = [v.name for split in TV_SPLITS for v in world.split(split)]
    assert len(names) == len(set(names))

@TVS
@SEEDS
def test_tv_videos_keep_their_word(cfg, seed):
    world = TVWorld(cfg, seed)
    def named(text, language):
        meant = world.embedding.concepts[language]
        return {meant[w] for w in world.embedding.words(text, language) if w in meant}
    shows = {s.name: s for s in world.shows}
    for split in TV_SPLITS:
        for v in world.split(split):
            n, show = int(v.duration // 1.5) + 1, shows[v.show]
            assert v.video.shape == (n, cfg.d_video)
            assert v.video.dtype == np.float32 and np.isfinite(v.video).all()
            assert v.scenes[0].start == 0 and abs(v.scenes[-1].end - v.duration) < 1e-6
            assert all(a.end == b.start and a.start < a.end for a, b in zip(v.scenes, v.scenes[1:]))
            for s in v.scenes:
                assert {s.speaker, s.listener} == {s.who, s.other} <= set(show.cast)
                assert s.who != s.other
                assert s.object in show.objects and s.place in show.places
                assert s.topic in show.topics
                assert s.seen <= {s.who, s.other, s.action, s.object, s.place}
            for l in v.lines:
                assert 0 <= l.start < l.end <= v.duration + 1e-6
                for language in ('en', 'zh'):
                    assert named(l.texts[language], language) == l.says[language]
            assert len(v.queries) == cfg.queries
            assert len({q.scene for q in v.queries}) == min(len(v.scenes), cfg.queries)
            for q in v.queries:
                s = v.scenes[q.scene]
                assert 0 <= q.moment[0] < q.moment[1] <= v.duration
                assert abs(q.moment[0] - s.start) < 6 * cfg.jitter
                assert abs(q.moment[1] - s.end) < 6 * cfg.jitter
                for language in ('en', 'zh'):
                    assert named(q.texts[language], language) == q.asks[language]
                    talk = {s.act, s.topic} & q.asks[language]
                    assert s.act in talk if 't' in q.type else not talk
                    if q.type == 't':
                        assert not {s.action, s.object, s.place} & q.asks[language]
                    assert not re.search(r'[{}\[\]]|  ', q.texts[language])

def test_people_are_of_one_series():
    for seed in range(4):
        casts = [set(s.cast) for s in TVWorld(TV, seed).shows]
        assert len(set().union(*casts)) == 24 and all(len(c) == 4 for c in casts)

def test_clips_hold_what_they_show():
    world = TVWorld(override(TV, sigma=0., presence=1.))
    for v in world.split('test'):
        for k, x in enumerate(v.video[:-1]): # the last clip is cut off
            due, start, end = np.zeros(64), 1.5 * k, 1.5 * k + 1.5
            for s in v.scenes:
                share = max(0., min(s.end, end) - max(s.start, start)) / 1.5
                for concept in s.seen: due += share * world.looks[concept]
            np.testing.assert_allclose(x, due, atol=1e-4)

def test_subtitle_rows_are_maxima_over_tokens():
    world = TVWorld(TV)
    silent = 0
    for v in world.split('test'):
        for language, x in v.subtitles.items():
            assert x.shape == (len(v.video), 128) and x.dtype == np.float32
            for k, row in enumerate(x):
                start, end = 1.5 * k, 1.5 * k + 1.5
                lines = [l for l in v.lines if min(l.end, end) - max(l.start, start) > 1e-9]
                if lines:
                    tokens = [world.embed(l.texts[language], language) for l in lines]
                    assert np.array_equal(row, np.concatenate(tokens).max(0))
                else:
                    silent += 1
                    assert not row.any()
    assert silent > 20

def test_real_distributions():
    world = TVWorld(TVWorldConfig(time_scale=1., test=400, d_video=1, d_text=1))
    videos, types = world.split('test'), []
    found = dict(duration=[v.duration for v in videos], length=[], start=[])
    for v, q in ((v, q) for v in videos for q in v.queries):
        start, end = q.moment
        found['length'].append(end - start)
        found['start'].append(start / max(v.duration - end + start, 1e-6))
        types.append(q.type)
    at = [.1, .25, .5, .75]
    for what, slack in dict(duration=dict(rtol=.1), length=dict(rtol=.25),
                            start=dict(rtol=1e-7, atol=.1)).items():
        np.testing.assert_allclose(np.quantile(found[what], at), mtvr_quantile(at, what), **slack)
    for kind in ('v', 't', 'vt'):
        assert abs(types.count(kind) / len(types) - getattr(world.cfg, f'share_{kind}')) < .03

def test_quantiles_are_those_of_the_real_set(shared_data):
    text = (shared_data/'mtvr'/'tvr_zh_en_val_release.jsonl').read_text('utf-8')
    rows = [json.loads(line) for line in text.splitlines()]
    duration = np.array([r['duration'] for r in rows])
    start, end = np.array([r['ts'] for r in rows]).T
    of_videos = list({r['vid_name']: r['duration'] for r in rows}.values())
    latest = np.maximum(duration - end + start, 1e-6)
    for what, values, slack in (('length', end - start, .006), ('start', start / latest, .0006),
                                ('duration', of_videos, .06)):
        quantiles = np.quantile(values, MTVR_QUANTILES['at'])
        np.testing.assert_allclose(quantiles, MTVR_QUANTILES[what], atol=slack)
    for kind in ('v', 't', 'vt'):
        share = np.mean([r['type'] == kind for r in rows])
        assert abs(share - getattr(TV, f'share_{kind}')) < .001

def test_knobs_of_one_part_of_tv_leave_the_others():
    base = tv_keys(TVWorld(TV), 'train')
    for changes, same in ( # positions in `tv_key`
            (dict(sigma=.1), (0, 1, 2, 3, 4, 5, 7, 8)),
            (dict(presence=.1), (0, 1, 2, 3, 4, 5, 7, 8)),
            (dict(corr=1., pace=2., talk=.9), (0, 1, 2, 3, 5, 6)),
            (dict(jitter=0., name_place=0.), (0, 1, 2, 3, 4, 6, 7, 8)),
            (dict(function=0.), (0, 1, 2, 3, 4, 5, 6)),
            (dict(d_text=32), (0, 1, 2, 3, 4, 5, 6))):
        changed = tv_keys(TVWorld(override(TV, **changes)), 'train')
        for a, b in zip(base, changed): assert all(a[k] == b[k] for k in same), changes

def test_controls_of_tv():
    changes = {}, dict(blind=True), dict(silent=True)
    base, blind, silent = (TVWorld(override(TV, **c)) for c in changes)
    for split in TV_SPLITS:
        for v, b, s in zip(*(world.split(split) for world in (base, blind, silent))):
            assert [x[:11] for x in v.scenes] == [x[:11] for x in b.scenes]
            assert v.queries == b.queries == s.queries and v.lines == b.lines == s.lines
            assert not any(x.seen for x in b.scenes)
            assert np.array_equal(v.subtitles['en'], b.subtitles['en'])
            assert np.array_equal(v.video, s.video)
            assert not np.array_equal(v.subtitles['en'], s.subtitles['en'])
    for world, gone, stays in ((blind, 'video', 'text'), (silent, 'text', 'video')):
        assert abs(world.matching('test', gone)['R@1'] - 1 / 25) < 1e-6
        both, one = world.matching('test', 'both'), world.matching('test', stays)
        assert both == one == base.matching('test', stays)
    x = np.concatenate([v.video for v in blind.split('train')])
    y = np.concatenate([v.subtitles['zh'] for v in silent.split('train')])
    assert abs(x.mean()) < .02 and abs(x.std() - .5) < .02
    assert abs(y.mean()) < .02 and abs(y.std() - 1) < .02

def test_talk_names_what_is_seen_as_often_as_asked():
    for corr in (0., .3, 1.):
        world = TVWorld(TVWorldConfig(train=150, corr=corr, lose_en=0., d_text=8, d_video=8))
        hits = [any(s.object in l.says['en'] for l in v.lines if s.start <= l.start < s.end)
                for v in world.split('train') for s in v.scenes]
        assert abs(np.mean(hits) - corr) < .06

@pytest.mark.parametrize('language', ['en', 'zh'])
def test_exact_matching_agrees_with_counting(language):
    world = TVWorld(TV)
    videos = world.split('test')
    def evidence(video, scene, sees):
        lines = [l for l in video.lines if scene.start <= l.start < scene.end]
        said = set().union(*(l.says[language] for l in lines))
        return dict(video=scene.seen, text=said, both=scene.seen | said)[sees]
    for sees in ('video', 'text', 'both'):
        right = []
        for own, v in enumerate(videos):
            for q in v.queries:
                score = [max(len(q.asks[language] & evidence(w, s, sees)) for s in w.scenes)
                         for w in videos]
                right.append((score[own] == max(score)) / score.count(max(score)))
        assert abs(world.matching('test', sees, language)['R@1'] - np.mean(right)) < 1e-6

def unit(x): return x / (np.linalg.norm(x, axis=-1, keepdims=True) + 1e-5)

def linear_retrieval(world, language):
    """R@1 over videos by type of query, when least squares carry queries into the space of clips:
    once for frames and once for subtitles."""
    train, test = world.split('train'), world.split('test')
    def asked(videos):
        texts = [q.texts[language] for v in videos for q in v.queries]
        return np.stack([unit(world.embed(text, language)).mean(0) for text in texts])
    x, y, types = asked(train), asked(test), np.array([q.type for v in test for q in v.queries])
    x, y = x - x.mean(0), y - x.mean(0)
    own = np.repeat(np.arange(len(test)), world.cfg.queries)
    first = np.cumsum([0] + [len(v.video) for v in test[:-1]])
    for rows in (lambda v: v.video, lambda v: unit(v.subtitles[language])):
        def inside(v, q):
            start, end = (int(second // 1.5) for second in q.moment)
            return rows(v)[start:end + 1].mean(0)
        centre = np.concatenate([rows(v) for v in train]).mean(0)
        target = np.stack([inside(v, q) for v in train for q in v.queries]) - centre
        carry = np.linalg.solve(x.T @ x + 10 * np.eye(x.shape[1]), x.T @ target)
        clips = unit(np.concatenate([rows(v) for v in test]) - centre)
        score = unit(y @ carry) @ clips.T # q l
        hit = np.maximum.reduceat(score, first, axis=1).argmax(1) == own
        yield {'all': hit.mean()} | {t: hit[types == t].mean() for t in ('v', 't', 'vt')}

@pytest.mark.parametrize('seed', [0, 1])
@pytest.mark.parametrize('language', ['en', 'zh'])
def test_both_streams_are_useful_on_their_own(seed, language):
    world = TVWorld(TVWorldConfig(train=900), seed)
    video, subtitles = linear_retrieval(world, language) # chance is 0.5 %
    assert video['all'] > .18 and video['v'] > 2 * video['t']
    assert subtitles['all'] > .03 and subtitles['v'] > .02
    bound = {sees: world.matching('test', sees, language)['R@1']
             for sees in ('video', 'text', 'both')}
    assert .2 < bound['text'] < bound['video'] < bound['both'] < .9

@pytest.mark.parametrize('cut', ['silent', 'blind'])
def test_nothing_is_learnt_from_noise(cut):
    world = TVWorld(TVWorldConfig(train=300, test=100, **{cut: True}))
    video, subtitles = linear_retrieval(world, 'en')
    assert (subtitles if cut == 'silent' else video)['all'] < .03 # chance is 1 %

def test_words_of_a_concept_are_alike():
    e = BilingualEmbedding(seed=4, d_text=512)
    cosine = lambda a, b: float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    row = lambda w, l='en': e.embed(w, l).mean(0)
    assert .5 < cosine(row('suitcase'), row('luggage')) < .8
    assert abs(cosine(row('suitcase'), row('umbrella'))) < .5
    assert abs(cosine(row('suitcase'), row('手提箱', 'zh'))) < .2
    assert np.linalg.norm(row('xyzzy')) < .4 * np.linalg.norm(row('suitcase'))
    assert np.array_equal(e.embed('Nora KISSES Leo.', 'en'), e.embed('nora kisses leo .', 'en'))
    again, other = BilingualEmbedding(4, 512), BilingualEmbedding(5, 512)
    assert np.array_equal(again.embed('谁在厨房？', 'zh'), e.embed('谁在厨房？', 'zh'))
    assert not np.array_equal(other.embed('谁', 'zh'), e.embed('谁', 'zh'))
    assert len(e.embed('诺拉在厨房里。', 'zh')) == 7
    assert len(e.embed('OK，诺拉', 'zh')) == 5
    rows = e.embed('厨房', 'zh')
    assert .9 < cosine(*rows) < 1

def test_tv_explains_itself():
    world = TVWorld(TV)
    text, v = world.explain('val', 2), world.sample('val', 2)
    assert text.startswith(v.name)
    assert text.count('\n') == len(v.scenes) + len(v.lines) + len(v.queries)
    for q in v.queries: assert q.texts['en'] in text and q.texts['zh'] in text

@pytest.mark.parametrize('changes, message', [
    (dict(test=-1), 'parameter test: -1 is too small'),
    (dict(shows=7), 'parameter shows: 7 is more than there are'),
    (dict(cast=5), 'parameter cast: 5 is more'),
    (dict(cast=1), 'parameter cast: 1 is too small'),
    (dict(actions=31), 'parameter actions'),
    (dict(show_objects=49), 'parameter show_objects: 49 is more'),
    (dict(places=4), 'parameter show_places: 5 is more'),
    (dict(show_topics=0), 'is too small'),
    (dict(queries=0), 'is too small'),
    (dict(corr=1.5), 'is not a probability'),
    (dict(lose_zh=-.1), 'is not a probability'),
    (dict(share_v=.9), 'do not add up to 1'),
    (dict(time_scale=0.), 'is too small'),
    (dict(pace=0.), 'is too small'),
    (dict(longest=1.2), 'longer than the video'),
    (dict(sigma=float('nan')), 'not a valid float'),
    (dict(sigma=-1.), 'is too small'),
    (dict(d_text=0), 'is too small'),
    (dict(silent=1), 'not a valid bool'),
    (dict(shows=2.5), 'not a valid int'),
    (dict(train=True), 'not a valid int'),
    (dict(rho=2.), 'is not a probability'),
    (dict(cast=2, actions=4, show_objects=4), 'too few for three splits')])
def test_impossible_tv(changes, message):
    with pytest.raises(DataError, match=message) as e: TVWorldConfig(**changes)
    assert str(e.value).endswith('.') and '\n' not in str(e.value)

def test_wrong_questions_to_tv():
    world = TVWorld(override(TV, val=0))
    with pytest.raises(DataError, match="did you mean 'train'"): world.split('trian')
    with pytest.raises(DataError, match="no video 0 of 'dev'"): world.explain('dev', 0)
    with pytest.raises(DataError, match="no video -1 of 'test'"): world.sample('test', -1)
    with pytest.raises(DataError, match='there is no view'): world.matching('test', 'audio')
    with pytest.raises(DataError, match='there are no videos'): world.matching('val')
    with pytest.raises(DataError, match='there is no language'): world.embed('olá', 'pt')
    with pytest.raises(DataError, match='has no words'): world.embed('', 'zh')
    assert world.split('val') == []
