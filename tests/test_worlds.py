"Breadth for `worlds`: many seeds and sizes, fresh processes, knobs at their ends, bad input."
import collections, dataclasses, os, re, subprocess, sys

import numpy as np, pytest
from mcls_nb.core import DataError, override
from mcls_nb.worlds import SLOTS, How2World, How2WorldConfig, _fill, _STEPS, _THEN

SPLITS = ('pretrain', 'train', 'val', 'test')
FEW = dict(pretrain=30, train=30, val=10, test=30)
SMALL = How2WorldConfig(**FEW)
TINY = How2WorldConfig(topics=3, actions=4, objects=4, tools=2, adjectives=4, people=4, distractors_min=0, distractors_max=1, **FEW)
LARGE = How2WorldConfig(topics=24, actions=12, objects=16, tools=8, adjectives=100, people=200, fillers_max=12, d_video=128, **FEW)
WHOLE = How2WorldConfig(topics=12, actions=6, objects=8, tools=4, adjectives=12, people=12) # the lexicon
WORLDS = pytest.mark.parametrize('cfg', [SMALL, TINY, LARGE], ids=['small', 'tiny', 'large'])
SEEDS = pytest.mark.parametrize('seed', [0, 1, 2, 3])

def words(world): return [*world.adjectives, *world.people, *(w for t in world.topics for role in t[:4] for w in role)]
def key(s): return s.id, s.transcripts, s.summary, s.slots, s.shown, s.frames, s.asides, s.video.tobytes()
def keys(world, split): return [key(s) for s in world.split(split)]

SCRIPT = '''
import hashlib
from mcls_nb.worlds import How2World, How2WorldConfig
digest = hashlib.sha256()
for topics in (6, 24):
    world = How2World(How2WorldConfig(topics=topics, actions=8, train=20), seed=3)
    for s in world.split('train'):
        digest.update(repr((s.transcripts, s.summary, s.slots, s.shown, s.frames, s.asides)).encode())
        digest.update(s.video.tobytes())
    digest.update(repr(world.oracle_summaries('train', 'video')).encode())
print(digest.hexdigest())
'''
def test_fresh_processes_make_the_same_world():
    run = lambda h: subprocess.check_output([sys.executable, '-c', SCRIPT], env=os.environ | {'PYTHONHASHSEED': h}, text=True).strip()
    first, second = run('1'), run('2')
    assert first == second and len(first) == 64

@WORLDS
def test_more_samples_leave_the_first_ones(cfg):
    more = How2World(dataclasses.replace(cfg, pretrain=50, train=40, val=30, test=60))
    for split in SPLITS: assert keys(more, split)[:getattr(cfg, split)] == keys(How2World(cfg), split)

def test_the_order_of_asking_does_not_matter():
    a, b = How2World(SMALL), How2World(SMALL)
    for split in SPLITS: a.split(split)
    assert keys(b, 'test') == keys(a, 'test')
    assert key(b.sample('train', 7)) == keys(a, 'train')[7]
    assert a.split('val') is a.split('val')

def test_seeds_make_other_worlds():
    assert How2World(SMALL, 0).split('test')[0].summary != How2World(SMALL, 1).split('test')[0].summary
    assert How2World(SMALL, 0).topics != How2World(SMALL, 1).topics

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
            assert tuple(s.slots) == tuple(s.shown) == SLOTS and len(set(s.slots.values())) == len(SLOTS)
            assert set(s.transcripts) == ({'en'} if split == 'pretrain' else {'en', 'pt'})
            assert s.video.dtype == np.float32 and s.video.shape == (len(s.frames), cfg.d_video) and np.isfinite(s.video).all()
            assert cfg.frames_min <= len(s.frames) <= cfg.frames_max
            tokens = s.summary.split(' ')
            assert 15 <= len(tokens) <= 24 and tokens[-1] == '.' and set(s.slots.values()) <= set(tokens)
            for language, text in s.transcripts.items():
                assert text == ' '.join(text.lower().split()) and re.fullmatch(r"[\w'\-,.? ]+", text)
                said = {slot for slot, w in s.slots.items() if word[w].forms(language) & set(text.split())}
                assert said == {slot for slot in SLOTS if 'text' in s.shown[slot]}
                for aside in (w for ws in s.asides.values() for w in ws):
                    assert aside not in s.slots.values() and word[aside].forms(language) & set(text.split())
            seen = {slot for f in s.frames if f.kind == 'step' for slot in f.shows}
            assert seen == {slot for slot in SLOTS if 'video' in s.shown[slot]} and not seen & {'adjective', 'person'}
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

ARTICLES = {w: g for g, ws in dict(m='o um este meu seu nosso do no', f='a uma esta minha sua nossa da na').items() for w in ws.split()}
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
            if before in ARTICLES: articles += 1; assert ARTICLES[before] == gender, f'{before} {noun}'
            if after in adjectives:
                agreeing += 1
                assert after == (adjectives[after].feminine if gender == 'f' else adjectives[after].pt), f'{noun} {after}'
        assert not re.search(r'\b(de (o|a)|em (o|a)|para os|por (o|a)) ', s.transcripts['pt'])
    assert articles > 1000 and agreeing > 100

def test_every_step_bends_in_both_languages():
    world = How2World(SMALL)
    topic = world.topics[0]
    for template in _STEPS + _THEN:
        for ahead in (False, True):
            en, pt = _fill(template, ahead, world.adjectives[0], topic.tool[0], action=topic.action[0], object=topic.object[0])
            assert not re.search(r'[{}|]|  ', en + pt) and en.endswith(' .') and pt.endswith(' .')
            assert topic.action[0].forms('en') & set(en.split()) and topic.action[0].forms('pt') & set(pt.split())

def test_knobs_of_one_part_leave_the_others():
    base = keys(How2World(SMALL), 'train')
    for changes, same in ( # positions in `key`
        (dict(sigma=.1, see_tool=.1), (1, 2, 3, 6)), (dict(d_video=32), (1, 2, 3, 4, 5, 6)), (dict(video_noise_only=True), (1, 2, 3, 6)),
        (dict(noise_en=.2, fillers_max=9), (2, 3, 4, 5, 7)), (dict(text_tells_all=True), (2, 3, 5, 6, 7))):
        for a, b in zip(base, keys(How2World(override(SMALL, **changes)), 'train')): assert all(a[k] == b[k] for k in same), changes

def test_saying_more_only_adds():
    less, more = (How2World(override(SMALL, say_action=p, say_tool=p)) for p in (.3, .6))
    for a, b in zip(less.split('train'), more.split('train')): assert all(set(a.shown[s]) <= set(b.shown[s]) for s in SLOTS)

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
    en, pt = (np.mean([len(s.transcripts[l].split()) for s in world.split('train')]) for l in ('en', 'pt'))
    assert 48 < en < 60 and 45 < pt < 60

def test_noise_changes_only_what_is_no_slot():
    clean, noisy = How2World(override(SMALL, noise_en=0., noise_pt=0.)), How2World(override(SMALL, noise_en=1., noise_pt=.0))
    for a, b in zip(clean.split('test'), noisy.split('test')):
        assert a.transcripts['pt'] == b.transcripts['pt'] and a.shown == b.shown
        kept = lambda s: [w for w in s.transcripts['en'].split() if w in clean.forms['en']]
        assert kept(a) == kept(b)
        assert len(a.transcripts['en']) != len(b.transcripts['en'])

def test_frames_hold_what_they_show():
    world = How2World(override(SMALL, sigma=0.))
    for s in world.split('test'):
        for x, f in zip(s.video, s.frames):
            np.testing.assert_allclose(x, sum((world.vectors[w] for w in f.shows.values()), np.zeros(64)), atol=1e-5)

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
@pytest.mark.parametrize('sees', ['nothing', 'topic', 'text', 'video', 'both'])
def test_bounds_agree_with_counting(cfg, sees):
    world = How2World(dataclasses.replace(cfg, test=150))
    guessed = [world.oracle_summaries('test', sees, seed) for seed in range(4)]
    hits = np.mean([[[w in t.split() for w in s.slots.values()] for s, t in zip(world.split('test'), texts)] for texts in guessed], (0, 1))
    bound = world.ceiling('test', sees)
    for slot, hit in zip(SLOTS, hits): assert abs(hit - bound[slot]) < .08, slot

@WORLDS
def test_bounds_are_ordered(cfg):
    world = How2World(cfg)
    mean = {sees: world.ceiling('test', sees)['mean'] for sees in ('nothing', 'topic', 'text', 'video', 'both')}
    assert mean['nothing'] < mean['topic'] < min(mean['text'], mean['video']) <= max(mean['text'], mean['video']) < mean['both'] < 1

def test_floors_keep_the_sentence_and_change_its_words():
    world = How2World(How2WorldConfig(test=100))
    floors = world.floors('test')
    fixed = lambda s, text: [w for w in text.split() if w not in world.forms['en']]
    assert [fixed(s, s.summary) for s in world.split('test')] == [fixed(s, t) for s, t in zip(world.split('test'), floors['template'])]
    assert sum(s.summary == t for s, t in zip(world.split('test'), floors['template'])) == 0
    assert floors['template'] == world.floors('test')['template'] != world.floors('test', seed=1)['template']

def test_explain_reads_well():
    world = How2World(SMALL)
    for split in SPLITS:
        text, s = world.explain(split, 3), world.sample(split, 3)
        assert text.startswith(f'{split}-3\n') and ('Portuguese' in text) == (split != 'pretrain')
        assert text.count('\nframe ') == len(s.frames) and all(len(line) <= 120 for line in text.split('\n'))

@pytest.mark.parametrize('changes, message', [
    (dict(test=-1), 'parameter test: -1 is too small'), (dict(topics=1), 'parameter topics'),
    (dict(actions=2), 'parameter actions'), (dict(tools=1), 'parameter tools'),
    (dict(see_tool=-.1), 'is not a probability'), (dict(irrelevant=1.5), 'is not a probability'),
    (dict(noise_en=float('nan')), 'not a valid float'), (dict(sigma=float('inf')), 'not a valid float'),
    (dict(sigma=-1.), 'is too small'), (dict(topics=2.5), 'not a valid int'), (dict(topics='six'), 'not a valid int'),
    (dict(text_tells_all='yes'), 'not a valid bool'), (dict(frames_min=20), 'is more than frames_max'),
    (dict(fillers_min=9), 'is more than fillers_max'), (dict(d_video=0), 'is too small'),
    (dict(topics=2, actions=3, objects=3, tools=2, adjectives=1, people=1), 'too few for four splits')])
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
