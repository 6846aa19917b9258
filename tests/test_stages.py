"Stages: by parameter name and value what is frozen, what travels and what trains; bad plans; the same seed again; interruptions."
import functools
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from mcls_nb import training
from mcls_nb.core import DataError, set_seed, stream_seed
from mcls_nb.summarize import recipes as stages
from mcls_nb.summarize.data import world_corpus
from mcls_nb.summarize.models import Summarizer, SummarizerConfig
from mcls_nb.summarize.rnn import RNNConfig
from mcls_nb.summarize.recipes import (
    RECIPES, Distil, Mix, PairData, Plan, Train, Translate, Transplant, follow, in_language,
    replace_stage, teach, train_translator)
from mcls_nb.summarize.stages import RELEASED, distil, distil_loss, translated, transplant
from mcls_nb.text import Vocab
from mcls_nb.training import FitConfig
from mcls_nb.worlds.how2 import How2World, How2WorldConfig

WORLD = How2WorldConfig(topics=3, actions=3, objects=3, tools=2, adjectives=3, people=3, pretrain=32, train=16, val=4, test=4, d_video=8, d_latent=4)
ONCE = FitConfig(epochs=1, batch_size=8, lr=1e-3, use='last')
TWICE = replace(ONCE, epochs=2, checkpoint_every=1)
CORPUS = world_corpus(How2World(WORLD))
PLAN = Plan(CORPUS, SummarizerConfig(d=16, heads=2, ffn=16, encoder_layers=2, decoder_layers=1), ONCE, ONCE, ONCE, mix=ONCE, translation=ONCE)

WAYS = dict(RECIPES)
WAYS |= {f'TS-E{k}': replace_stage(RECIPES['TS-E'], layers=k) for k in (0, 1, 2)}
WAYS |= {f'{name} {word}': replace_stage(RECIPES[name], **change) for name in ('TS-E', 'TS-V')
         for word, change in (('warp', dict(align='warp')), ('normed', dict(normed=True)), ('shuffled', dict(shuffled=True)))}
WAYS |= {'TS-E warp normed': replace_stage(RECIPES['TS-E'], align='warp', normed=True), 'TS-E1 normed': replace_stage(RECIPES['TS-E'], layers=1, normed=True)}
WAYS |= {'TS-E released': replace_stage(RECIPES['TS-E'], RELEASED), 'TS-V released': replace_stage(RECIPES['TS-V'], replace(RELEASED, layers=0))}
DISTILLED = [name for name, way in WAYS.items() if any(isinstance(s, Distil) for s in way)]
TAUGHT = [name for name, way in WAYS.items() if any(isinstance(s, Transplant) for s in way)]
LAST = {name: 'stage 3' if name in TAUGHT or name == 'T+P+F' else {'teacher': 'stage 1', 'M': 'mixed'}.get(name, 'direct') for name in RECIPES} # notes of the last training

# Beginnings of names that do not come from the teacher, spelled out.
EMBED, LAYERS, NORM = 'reader.embed.', 'reader.encoder.layers.', 'reader.encoder.norm.'
ELSEWHERE = {
    'P+F': {EMBED + 'words.': 'shared'}, 'TS-E w/o KD': {EMBED: 'new', LAYERS: 'new'}, 'TS-V w/o KD': {EMBED + 'words.': 'new'},
    **{name: {EMBED: 'student', LAYERS: 'student'} for name in ('TS-E', 'TS-E2', 'TS-E warp', 'TS-E shuffled', 'TS-E released')},
    **{name: {EMBED: 'student', LAYERS: 'student', NORM: 'student'} for name in ('TS-E normed', 'TS-E warp normed')},
    **{name: {EMBED: 'student'} for name in ('TS-E0', 'TS-V', 'TS-V warp', 'TS-V shuffled', 'TS-V normed', 'TS-V released')},
    'TS-E1': {EMBED: 'student', LAYERS + '0.': 'student'}, 'TS-E1 normed': {EMBED: 'student', LAYERS + '0.': 'student', NORM: 'student'}}


def state(model): return {n: t.detach().clone() for n, t in model.state_dict().items()}

def same(a, b): return a.keys() == b.keys() and all(torch.equal(t, b[n]) for n, t in a.items())

def changed(a, b): return {n for n, t in a.items() if not torch.equal(t, b[n])}

def reading(what): return replace(PLAN, model=replace(PLAN.model, reads=what))


@functools.cache
def followed(name, reads='both', samples=None):
    "A way gone to its end; what `fit` was handed in each stage, and the weights before and after it."
    seen, fit = {}, stages.fit
    def spy(model, data, loss, cfg, out=None, validate=None, note=''):
        one = seen['distil' if note.startswith('distil') else note] = SimpleNamespace(model=model, data=data, cfg=cfg, before=state(model))
        one.mode = seen['stage 1'].model.training if 'stage 1' in seen else None
        history = fit(model, data, loss, cfg, out, validate, note)
        one.after = state(model)
        return history
    with pytest.MonkeyPatch.context() as m:
        m.setattr(stages, 'fit', spy)
        return follow(WAYS[name], replace(reading(reads), samples=samples)), seen


def stage_2(stage=Distil(), plan=PLAN, **cfg):
    "Teacher, vocabularies, configuration of stage 3 and both sides of the transcripts."
    teacher, (english, _) = teach(plan)
    vocabs = (stages._vocab(plan, 'pt', 'train'), english)
    data = stages._data(plan, 'train', 'pt', vocabs, ONCE), stages._data(plan, 'train', 'en', (english, english), ONCE)
    return teacher, vocabs, replace(stages._config(plan, vocabs, share_words=False), **cfg), *data


# --- frozen, moving, training ---

def test_every_way_is_expected():
    assert set(TAUGHT) == set(ELSEWHERE)


@pytest.mark.parametrize('name', TAUGHT)
def test_what_travels(name):
    done, seen = followed(name)
    set_seed(stream_seed('weights', PLAN.seed))
    given = {'new': state(Summarizer(done.model.cfg)), 'teacher': seen['stage 1'].after}
    if name in DISTILLED: given['student'] = {f'reader.{n}': t for n, t in seen['distil'].after.items()}
    begun = seen['stage 3'].before
    assert done.origins.keys() == begun.keys() == dict(done.model.named_parameters()).keys()
    for n, t in begun.items():
        origin = next((o for start, o in ELSEWHERE[name].items() if n.startswith(start)), 'teacher')
        assert done.origins[n] == origin, n
        if origin != 'shared': assert torch.equal(t, given[origin][n]), n
    if name == 'P+F': # word by word
        n, (source, target) = EMBED + 'words.weight', done.vocabs
        for i, word in enumerate(source.tokens):
            assert torch.equal(begun[n][i], given['teacher'][n][target.ids[word]] if word in target else given['new'][n][i]), word
        assert 3 < sum(word in target for word in source.tokens) < len(source)


@pytest.mark.parametrize('name', DISTILLED)
def test_the_teacher_only_teaches(name):
    _, seen = followed(name)
    teacher, stage = seen['stage 1'], next(s for s in WAYS[name] if isinstance(s, Distil))
    assert same(state(teacher.model), teacher.after) and not teacher.model.training
    assert all(p.requires_grad and p.grad is None for p in teacher.model.parameters())
    assert seen['distil'].mode == stage.teacher_dropout and seen['distil'].cfg.eps == (stage.eps or ONCE.eps)


@pytest.mark.parametrize('name', DISTILLED)
def test_what_the_student_learns(name):
    _, seen = followed(name)
    student, stage = seen['distil'], next(s for s in WAYS[name] if isinstance(s, Distil))
    depth = 2 if stage.layers is None else stage.layers
    names = {'embed.words.weight', 'embed.places.weight'} | {n for n in student.before if n.startswith('encoder.layers.')}
    assert {int(n.split('.')[2]) for n in names if n.startswith('encoder.layers.')} == set(range(depth))
    norm = {'encoder.norm.weight', 'encoder.norm.bias'}
    assert student.before.keys() == names | norm
    # A key's bias adds the same to all scores of a query, so that its gradient is nothing but rounding.
    rounding = {n for n in names if n.endswith('attention.k.bias')}
    assert changed(student.before, student.after) | rounding == names | (norm if stage.normed else set())
    src, longest = student.data.src, max(map(len, student.data.src))
    moved = lambda n: set((student.before[n] != student.after[n]).any(1).nonzero().flatten().tolist())
    assert moved('embed.words.weight') == {int(i) for s in src for i in s} and moved('embed.places.weight') == set(range(1, longest + 1))


@pytest.mark.parametrize('name', list(RECIPES))
@pytest.mark.parametrize('reads', ['both', 'text'])
def test_what_the_last_stage_trains(name, reads):
    done, seen = followed(name, reads)
    last = seen[LAST[name]]
    assert last.model is done.model and not done.model.training
    frozen = last.before.keys() - changed(last.before, last.after)
    assert all(n.endswith('.k.bias') for n in frozen), frozen
    assert all(p.requires_grad for p in done.model.parameters())
    stages_told = {'teacher': [], 'T+P+F': ['pretrain', 'train']}.get(name, ['distil', 'train'] if name in DISTILLED else ['train'])
    assert list(done.histories) == stages_told and done.language == ('en' if name in ('teacher', 'Pipe', 'monolingual') else 'pt')
    assert done.split == ('pretrain' if name == 'teacher' else 'train')


@pytest.mark.parametrize('stage', [Distil(), Distil(1), Distil(normed=True), Distil(scale='released')])
def test_loss_of_one_pair(stage):
    "Eqs. 8 and 9 by PyTorch's own pooling and loss."
    teacher, _, cfg, mine, theirs = stage_2()
    student = stages.new_student(cfg, 2 if stage.layers is None else stage.layers).eval()
    for i in (0, 7):
        total, n = distil_loss(stage)(student, PairData(mine, theirs, teacher.reader, stage, 8).collate([i]))
        ones = lambda ids: (ids[None], torch.ones(1, len(ids), dtype=torch.bool))
        x, y = student.states(*ones(mine.src[i]), stage.layers), teacher.reader.states(*ones(theirs.src[i]), stage.layers)
        if stage.normed: x, y = student.encoder.norm(x), teacher.reader.encoder.norm(y)
        loss = F.smooth_l1_loss(x, F.adaptive_avg_pool1d(y.transpose(1, 2), x.shape[1]).transpose(1, 2))
        words = len(mine.tgt[i]) if stage.scale == 'released' else 1
        torch.testing.assert_close(total / n, loss / words)


def test_shuffled_pairs_are_another_transcripts():
    teacher, _, _, mine, theirs = stage_2()
    right, wrong = (PairData(mine, theirs, teacher.reader, Distil(align='warp', shuffled=s), 8).targets for s in (False, True))
    for i in range(16): assert torch.equal(wrong[i], right[(i + 1) % 16])


# --- what a stage may see ---

@pytest.mark.parametrize('name', ['direct', 'P+F', 'TS-E', 'TS-V'])
def test_samples_are_the_first_ones_in_stages_2_and_3(name):
    done, seen = followed(name, samples=5)
    kept = CORPUS.splits['train'][:5]
    for note, one in seen.items():
        if note == 'distil': assert [s.tolist() for s in one.data.src] == [done.vocabs[0].encode(r.transcripts['pt']).tolist() for r in kept]
        else: assert one.data.records == (CORPUS.splits['pretrain'] if note == 'stage 1' else kept)
    assert set(done.vocabs[0].tokens[3:]) == {w for r in kept for w in r.transcripts['pt'].split()}


@pytest.mark.parametrize('n', [0, -1, 17, 10**9])
@pytest.mark.parametrize('name', ['direct', 'P+F', 'TS-E'])
def test_impossible_samples(name, n):
    with pytest.raises(DataError, match=f'samples: {n} of 16 records cannot be had; choose 1 to 16.'): follow(WAYS[name], replace(PLAN, samples=n))


# --- what does not fit ---

def test_a_parameter_that_nobody_set():
    teacher, _, cfg, mine, theirs = stage_2()
    student, _ = distil(teacher, mine, theirs, cfg, Distil(1), ONCE)
    with pytest.raises(DataError, match=r'reader.encoder.layers.1.*: the student has no such parameter'): transplant(Summarizer(cfg), Transplant(), teacher, student, 2)
    with pytest.raises(DataError, match='reader.embed.words.weight: the student has no such parameter'): transplant(Summarizer(cfg), Transplant(), teacher)
    deeper = replace(cfg, decoder_layers=2)
    with pytest.raises(DataError, match=r'writer.layers.1.*: the teacher has no such parameter'): transplant(Summarizer(deeper), Transplant(), teacher, student, 1)
    sighted = Summarizer(replace(cfg, reads='text'))
    assert set(transplant(sighted, Transplant(), teacher, student, 1).values()) == {'teacher', 'student'} # what a system does not read need not travel


@pytest.mark.parametrize('how,cfg,says', [
    (Transplant('new', 'new'), dict(target_words=999), r'writer.embed.words.weight: the teacher has \(\d+, 16\), this model \(999, 16\); use the same vocabularies'),
    (Transplant('new', 'new'), dict(d=32), 'the teacher has'),
    (Transplant('shard', 'teacher'), {}, "there is no origin of words 'shard'; did you mean 'shared'"),
    (Transplant('new', 'techer'), {}, "there is no origin of layers 'techer'; did you mean 'teacher'")])
def test_a_teacher_that_does_not_fit(how, cfg, says):
    teacher, vocabs, cfg, *_ = stage_2(**cfg)
    with pytest.raises(DataError, match=says) as e: transplant(Summarizer(cfg), how, teacher, layers=2, vocabs=vocabs)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('recipe', [(), (Train('val'),), (Train('pretrain', 'pt'), Transplant(), Train()), (Translate(),), (Mix(), Train()), (Train('train', 'en'), Train()),
    (Train('train', 'en'), Translate('test', 'pt', 'en'), Train()), (Train('pretrain', 'pt'), Train()), (Translate('pretrain', 'en', 'zh'), Train('pretrain', 'zh'), Train()), (Mix((Train('pretrain', 'zh'), Train())),), (Train(), Train('pretrain', 'en')), (Distil(), Transplant(), Train()),
    (Train('pretrain', 'en'), Transplant(), Distil(), Train()), (Train('pretrain', 'en'), Transplant()), (Train(), Train())])
def test_impossible_recipes(recipe):
    with pytest.raises(DataError) as e: follow(recipe, PLAN)
    assert '\n' not in str(e.value)


def test_the_teacher_rests_after_an_accident(monkeypatch):
    teacher, _, cfg, mine, theirs = stage_2()
    def accident(*args, **more): raise KeyboardInterrupt
    monkeypatch.setattr(stages, 'fit', accident)
    with pytest.raises(KeyboardInterrupt): distil(teacher, mine, theirs, cfg, RELEASED, ONCE)
    assert not teacher.training


@pytest.mark.parametrize('stage,says', [(Distil(3), 'there is no layer 3; the encoder has 2'), (Distil(-1), 'there is no layer -1'),
    (Distil(align='wrap'), "did you mean 'warp'"), (Distil(scale='sum'), "no value of scale 'sum'")])
def test_impossible_distillation(stage, says):
    teacher, _, cfg, mine, theirs = stage_2()
    with pytest.raises(DataError, match=says): distil(teacher, mine, theirs, cfg, stage, ONCE)


def test_a_student_of_another_width():
    teacher, _, cfg, mine, theirs = stage_2(d=32)
    with pytest.raises(DataError, match='states of width 32 cannot be compared with states of width 16'): distil(teacher, mine, theirs, cfg, Distil(), ONCE)


@pytest.mark.parametrize('change', ['width', 'vocabulary', 'none'])
def test_shared_words_of_another_teacher(change):
    teacher, (source, english), cfg, *_ = stage_2()
    if change == 'width': cfg = replace(cfg, d=32)
    vocabs = {'width': (source, english), 'vocabulary': (source, Vocab([f'w{i}' for i in range(900)] + source.tokens[3:])), 'none': None}[change]
    with pytest.raises(DataError): transplant(Summarizer(cfg), Transplant('shared', 'teacher'), teacher, vocabs=vocabs)


@pytest.mark.parametrize('longer', ['mine', 'theirs'])
def test_records_that_do_not_pair_up(longer):
    teacher, vocabs, cfg, mine, theirs = stage_2()
    if longer == 'mine': theirs = theirs.head(5)
    else: mine = mine.head(5)
    with pytest.raises(DataError): distil(teacher, mine, theirs, cfg, Distil(), ONCE)


# --- one-sided systems ---

READS = [name for name, way in RECIPES.items() if any(isinstance(s, (Distil, Translate)) for s in way)]

@pytest.mark.parametrize('name', [n for n in RECIPES if n not in READS])
def test_video_only_goes_through_what_has_no_distillation(name):
    done = follow(WAYS[name], reading('video'))
    assert not any('embed' in n for n in done.origins if n.startswith('reader'))
    if name in TAUGHT: assert {done.origins['reader.places.weight'], done.origins['reader.project.weight']} == {'teacher'}


@pytest.mark.parametrize('name', [*READS, 'TS-E warp'])
def test_video_only_has_no_text_to_distil_or_translate(name):
    with pytest.raises(DataError, match='no text to distil or translate'): follow(WAYS[name], reading('video'))


def test_text_only_never_touches_the_video():
    class Dark(dict):
        def __getitem__(self, i): return torch.full_like(torch.as_tensor(CORPUS.features[i]), torch.nan).numpy()
    plan = reading('text')
    light, dark = (follow(RECIPES['TS-E'], replace(plan, corpus=replace(CORPUS, features=f))) for f in (CORPUS.features, Dark(CORPUS.features)))
    assert same(state(light.model), state(dark.model))


# --- the same again ---

@pytest.mark.parametrize('name', ['direct', 'P+F', 'TS-E', 'TS-V released', 'M', 'T+P+F', 'Pipe'])
def test_same_seed_same_weights(name, tmp_path):
    first, _ = followed(name)
    torch.manual_seed(99)
    for out in (None, tmp_path): # in memory and in a folder
        again = follow(WAYS[name], PLAN, out and out/'run', out and out/'teachers')
        assert same(state(first.model), state(again.model)) and first.origins == again.origins
        for stage, h in first.histories.items(): assert h.curve('loss', 'train').equals(again.histories[stage].curve('loss', 'train'))
    assert not same(state(first.model), state(follow(WAYS[name], replace(PLAN, seed=1)).model))


PLACES = [(name, stage) for name in ('TS-E', 'TS-V released') for stage in ('stage 1', 'distil', 'stage 3')]
PLACES += [('M', 'mixed'), ('T+P+F', 'translator'), ('T+P+F', 'stage 1'), ('T+P+F', 'stage 3'), ('Pipe', 'direct'), ('Pipe', 'translator')]

@pytest.mark.parametrize('name,stage', PLACES)
def test_interrupted_is_uninterrupted(name, stage, tmp_path, monkeypatch):
    plan = replace(PLAN, train=TWICE, pretrain=TWICE, distil=TWICE, mix=TWICE, translation=TWICE)
    straight, update, made = follow(WAYS[name], plan), training.Trainer.update, []
    def fragile(run, batch):
        if run.about['note'].startswith(stage):
            made.append(run.at['step'])
            if len(made) == 4: raise KeyboardInterrupt
        return update(run, batch)
    monkeypatch.setattr(training.Trainer, 'update', fragile)
    go = lambda: follow(WAYS[name], plan, tmp_path/'run', tmp_path/'teachers')
    with pytest.raises(KeyboardInterrupt): go()
    assert same(state(straight.model), state(go().model))
    updates = {'stage 1': 8, 'mixed': 12}.get(stage, 4)
    assert made == [0, 1, 2, 3, *range(3, updates)] # nothing was made twice but the update that failed
    again = go()
    assert same(state(straight.model), state(again.model)) and len(made) == updates + 1
    assert again.corpus.splits == straight.corpus.splits and again.scores == straight.scores # translations, too


# --- teachers ---

def teachers(folder): return sorted(p.name for p in folder.iterdir() if p.is_dir())


def test_one_teacher_for_all_who_may_share_it(tmp_path):
    names = ['P+F', 'TS-E', 'TS-V', 'TS-E w/o KD', 'teacher']
    for k, name in enumerate(names): follow(WAYS[name], replace(PLAN, samples=(None, 5)[k % 2]), tmp_path/str(k), tmp_path/'teachers')
    assert len(teachers(tmp_path/'teachers')) == 1


JUDGED = replace(CORPUS, splits={**CORPUS.splits, 'val': CORPUS.splits['val'][:3]})
ENGLISH = replace(CORPUS, splits={**CORPUS.splits, 'pretrain': CORPUS.splits['pretrain'][:24]})

@pytest.mark.parametrize('change', [dict(seed=1), dict(pretrain=TWICE), dict(corpus=ENGLISH), dict(corpus=JUDGED), dict(model=replace(PLAN.model, reads='text')), dict(model=replace(PLAN.model, ffn=8)),
    dict(corpus=world_corpus(How2World(replace(WORLD, sigma=3.)))), dict(max_text=6), dict(max_video=2)], ids=lambda c: next(iter(c)))
def test_another_teacher(change, tmp_path):
    other = replace(PLAN, **change)
    mine, theirs = (teach(p, tmp_path)[0] for p in (PLAN, other))
    assert len(teachers(tmp_path)) == 2
    assert same(state(theirs), state(teach(other)[0]))


# --- mixed training ---

def test_mixed_training_sees_both_languages():
    done, seen = followed('M')
    data, parts = seen['mixed'].data, [(CORPUS.splits[split], language) for split, language in (('pretrain', 'en'), ('train', 'pt'))]
    assert data.records == [r for records, _ in parts for r in records]
    said = [r.transcripts[language] for records, language in parts for r in records]
    assert [done.vocabs[0].decode(s) for s in data.src] == said
    assert {w for text in said for w in text.split()} <= {*done.vocabs[0].tokens} == {*CORPUS.vocab('en', 'pretrain').tokens, *CORPUS.vocab('pt', 'train').tokens}
    languages = [{data.languages[i] for i in batch} for batch in data.batches(0)]
    assert {'en', 'pt'} in languages # they meet within batches
    assert len(data.lengths) == len(data) == 48 and seen['mixed'].cfg == ONCE


def test_samples_of_mixed_training():
    done, seen = followed('M', samples=5)
    assert seen['mixed'].data.records == CORPUS.splits['pretrain'] + CORPUS.splits['train'][:5]


def test_shared_words_are_a_joint_vocabulary():
    "P+F: what is transplanted computes what a network with a table of all words of both languages would after stage 1."
    done, seen = followed('P+F')
    teacher, begun, english = seen['stage 1'].after, seen['stage 3'].before, CORPUS.vocab('en', 'pretrain')
    source = done.vocabs[0]
    joint = stages._joint([english, source])
    with torch.no_grad():
        one, two = Summarizer(done.model.cfg).eval(), Summarizer(replace(done.model.cfg, source_words=len(joint))).eval()
        one.load_state_dict(begun)
        table = {'reader.embed.words.weight': torch.zeros(len(joint), 16)}
        two.load_state_dict({n: t for n, t in {**teacher, **table}.items() if n in two.state_dict()})
        words = two.reader.embed.words.weight
        words[:len(english)] = teacher['reader.embed.words.weight'] # pre-training has moved these
        for w in source.tokens: # and has never met the others
            if w not in english: words[joint.ids[w]] = begun['reader.embed.words.weight'][source.ids[w]]
        mine, theirs = (stages._data(PLAN, 'train', 'pt', (v, english), ONCE).collate([3, 0, 7]) for v in (source, joint))
        assert torch.equal(one(mine).logits, two(theirs).logits)


# --- translation ---

def shout(texts): return [' '.join(reversed(t.split())) for t in texts]

def test_any_translator_will_do():
    asked = []
    def translate(texts): asked.append(texts); return shout(texts)
    plan = replace(PLAN, translator=translate)
    seen, fit = {}, stages.fit
    def spy(model, data, *args): seen[args[-1]] = data; return fit(model, data, *args)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(stages, 'fit', spy)
        done = follow(RECIPES['T+P+F'], plan)
    assert asked[0] == [r.transcripts['en'] for r in CORPUS.splits['pretrain']] and asked[1] == [r.transcripts['en'] for r in CORPUS.splits['test']]
    assert [r.transcripts['pt'] for r in seen['stage 1'].records] == shout(asked[0]) and set(seen) == {'stage 1', 'stage 3'}
    assert done.vocabs[1].tokens == CORPUS.vocab('en', 'pretrain').tokens and 'pt' not in CORPUS.splits['pretrain'][0].transcripts # the corpus is as it was
    perfect = dict(zip((r.transcripts['pt'] for r in CORPUS.splits['test']), (r.transcripts['en'] for r in CORPUS.splits['test'])))
    told = [follow(RECIPES[name], replace(PLAN, translator=lambda texts: [perfect[t] for t in texts])) for name in ('Pipe', 'monolingual')]
    assert same(*(state(d.model) for d in told)) and told[0].corpus.splits == told[1].corpus.splits
    assert told[0].scores['translation bleu4'] == pytest.approx(100, abs=1e-3) and not told[1].scores


@pytest.mark.parametrize('name', ['direct', 'P+F', 'M', 'Pipe', 'T+P+F'])
def test_without_validation_the_last_weights_count(name):
    "Whether the split is absent or empty."
    none = [follow(RECIPES[name], replace(PLAN, corpus=replace(CORPUS, splits=splits))) for splits in
            ({s: r for s, r in CORPUS.splits.items() if s != 'val'}, CORPUS.splits | {'val': []})]
    assert same(*(state(f.model) for f in none)) and none[0].scores == none[1].scores

def test_an_empty_split_decides_nothing():
    assert same(*(state(follow(RECIPES['direct'], replace(PLAN, corpus=replace(CORPUS, splits=splits))).model) for splits in (CORPUS.splits, {'pretrain': []} | {s: CORPUS.splits[s] for s in ('train', 'val')})))

def test_a_test_split_is_translated_once():
    asked = []
    follow(RECIPES['Pipe'], replace(PLAN, translator=lambda texts: asked.append(texts) or texts))
    assert asked == [[r.transcripts['pt'] for r in CORPUS.splits['test']]]


def test_a_pipeline_reads_translations_only_when_it_is_tested():
    done, seen = followed('Pipe')
    assert [r.transcripts['en'] for r in seen['direct'].data.records] == [r.transcripts['en'] for r in CORPUS.splits['train']]
    assert done.vocabs[0].tokens == done.vocabs[1].tokens and done.model.reader.embed.words is done.model.writer.embed.words
    for mine, theirs in zip(done.corpus.splits['test'], CORPUS.splits['test']):
        assert mine.transcripts['pt'] == theirs.transcripts['pt'] and mine.transcripts['en'] != theirs.transcripts['en']
    assert done.corpus.splits['train'] is CORPUS.splits['train'] and 0 <= done.scores['translation bleu4'] <= 100
    pairs = seen['translator pt to en'].data
    assert [pairs.src_vocab.decode(s) for s in pairs.src] == [r.transcripts['pt'] for r in CORPUS.splits['train']]
    assert [pairs.tgt_vocab.decode(t) for t in pairs.tgt] == [r.transcripts['en'] for r in CORPUS.splits['train']]


def test_a_translator_is_trained_once(tmp_path, monkeypatch):
    for reads in ('both', 'text'): follow(RECIPES['Pipe'], replace(reading(reads), translator=replace(PLAN.model, reads='text')), tmp_path/reads, tmp_path/'teachers')
    assert len(teachers(tmp_path/'teachers')) == 1
    translator = train_translator(replace(PLAN, translator=replace(PLAN.model, reads='text')), 'pt', 'en', tmp_path/'teachers')
    texts = [r.transcripts['pt'] for r in CORPUS.splits['test']]
    found = translator(texts)
    monkeypatch.setattr(stages, 'summarize', None) # what was translated is read
    assert translator(texts) == found and len(found) == len(texts)


@pytest.mark.parametrize('translate', [lambda texts: texts[1:], lambda texts: [None] * len(texts), lambda texts: []])
def test_a_translator_that_loses_texts(translate):
    with pytest.raises(DataError, match='not every one of 4 transcripts came back'): translated(CORPUS, Translate('test', 'pt', 'en'), translate)


def test_nothing_to_translate():
    with pytest.raises(DataError, match='choose one of: en'): translated(CORPUS, Translate('pretrain', 'pt', 'en'), shout)
    lonely = replace(CORPUS, splits={**CORPUS.splits, 'test': [replace(r, transcripts={'pt': r.transcripts['pt']}) for r in CORPUS.splits['test']]})
    done = follow(RECIPES['Pipe'], replace(PLAN, corpus=lonely)) # how good it is cannot be told, but it goes
    assert not done.scores and all('en' in r.transcripts for r in done.corpus.splits['test'])


# --- another language, another network ---

@pytest.mark.parametrize('name', RECIPES)
def test_another_language(name):
    "Nothing but the language's name changes."
    def renamed(r): return replace(r, transcripts={{'pt': 'zh'}.get(l, l): t for l, t in r.transcripts.items()})
    chinese = replace(CORPUS, splits={s: [renamed(r) for r in records] for s, records in CORPUS.splits.items()})
    done, (usual, _) = follow(in_language(RECIPES[name], 'zh'), replace(PLAN, corpus=chinese)), followed(name)
    assert same(state(done.model), state(usual.model)) and done.language == {'pt': 'zh'}.get(usual.language, usual.language)


@pytest.mark.parametrize('reads', ['both', 'text', 'video'])
def test_another_network(reads):
    plan = replace(PLAN, model=RNNConfig(embed=8, hidden=8, state=8, layers=1, rows=8, reads=reads), translator=replace(PLAN.model, reads='text'))
    for name in ('direct', 'M', 'monolingual', *(['Pipe'] if reads != 'video' else [])): assert type(follow(RECIPES[name], plan).model).__name__ == 'RNNSummarizer'
    with pytest.raises(DataError, match='only transformers are transplanted'): follow(RECIPES['P+F'], plan)
