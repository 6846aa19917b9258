"""Recipes: by parameter name and value what is frozen, what travels and what trains; trainings that
are not possible; the same seed again; interruptions."""
import functools
from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers import refused

from mcls_nb import training as trainer
from mcls_nb.core import set_seed, stream_seed
from mcls_nb.summarize import stages
from mcls_nb.summarize.data import world_corpus
from mcls_nb.summarize.models import Summarizer
from mcls_nb.summarize.recipes import (
    direct, english_teacher, joint_vocab, mixed, monolingual, pipeline, pretrain_finetune,
    translated_pretraining, ts_e, ts_e_without_kd, ts_v, ts_v_without_kd)
from mcls_nb.summarize.rnn import RNNConfig
from mcls_nb.summarize.stages import RELEASED, DistilConfig
from mcls_nb.worlds.how2 import How2World
from summary_world import (
    CORPUS, FITS, NETWORK, ONCE, WORLD, changed, final, follow, same, spied, training, weights)

RECIPES = {recipe.__name__: recipe for recipe in (
    direct, monolingual, english_teacher, pipeline, mixed, translated_pretraining,
    pretrain_finetune, ts_e, ts_v, ts_e_without_kd, ts_v_without_kd)}
NO_TEXT = {'direct', 'monolingual', 'english_teacher', 'mixed', 'pretrain_finetune',
           'ts_e_without_kd', 'ts_v_without_kd'} # which a system that reads only video can follow

# Ways to distil: of the two recipes that do, with what is changed
RELEASED_HOW = {field: value for field, value in vars(RELEASED).items() if field != 'layers'}
HOW = {'': {}, ' warp': dict(align='warp'), ' normed': dict(normed=True),
       ' shuffled': dict(shuffled=True), ' released': RELEASED_HOW}
ONLY_TS_E = {' 0': dict(layers=0), ' 1': dict(layers=1), ' 2': dict(layers=2),
             ' warp normed': dict(align='warp', normed=True),
             ' 1 normed': dict(layers=1, normed=True)}
DISTILLED = {f'ts_e{word}': DistilConfig(**how) for word, how in (HOW | ONLY_TS_E).items()}
DISTILLED |= {f'ts_v{word}': DistilConfig(0, **how) for word, how in HOW.items()}
WAYS = RECIPES | {f'ts_e{word}': partial(ts_e, **how) for word, how in (HOW | ONLY_TS_E).items()}
WAYS |= {f'ts_v{word}': partial(ts_v, **how) for word, how in HOW.items()}
TAUGHT = [*DISTILLED, 'pretrain_finetune', 'ts_e_without_kd', 'ts_v_without_kd']

# Note of the training that comes last
LAST = dict.fromkeys(RECIPES, 'stage 3') | dict(
    direct='direct', monolingual='direct', pipeline='direct', english_teacher='stage 1',
    mixed='mixed')

# Beginnings of names that do not come from the teacher, spelled out
EMBED, LAYERS, NORM = 'reader.embed.', 'reader.encoder.layers.', 'reader.encoder.norm.'
TEXT_SIDE = {EMBED: 'student', LAYERS: 'student'}
ELSEWHERE = {
    'pretrain_finetune': {EMBED + 'words.': 'shared'},
    'ts_e_without_kd': {EMBED: 'new', LAYERS: 'new'},
    'ts_v_without_kd': {EMBED + 'words.': 'new'},
    'ts_e': TEXT_SIDE, 'ts_e 2': TEXT_SIDE, 'ts_e warp': TEXT_SIDE, 'ts_e shuffled': TEXT_SIDE,
    'ts_e released': TEXT_SIDE,
    'ts_e normed': {**TEXT_SIDE, NORM: 'student'},
    'ts_e warp normed': {**TEXT_SIDE, NORM: 'student'},
    'ts_e 0': {EMBED: 'student'}, 'ts_v': {EMBED: 'student'}, 'ts_v warp': {EMBED: 'student'},
    'ts_v shuffled': {EMBED: 'student'}, 'ts_v normed': {EMBED: 'student'},
    'ts_v released': {EMBED: 'student'},
    'ts_e 1': {EMBED: 'student', LAYERS + '0.': 'student'},
    'ts_e 1 normed': {EMBED: 'student', LAYERS + '0.': 'student', NORM: 'student'}}


def reading(what): return replace(NETWORK, reads=what)

def corpus_with(**splits): return replace(CORPUS, splits=CORPUS.splits | splits)

def said(records, language): return [r.transcripts[language] for r in records]

@functools.cache
def followed(name, reads='both', samples=None):
    "A way gone to its end, and what happened in each stage."
    return spied(WAYS[name], network=reading(reads), samples=samples)


# --- frozen, moving, training ---

def test_every_way_is_expected():
    assert set(TAUGHT) == set(ELSEWHERE) and set(DISTILLED) <= set(WAYS)
    ends = {name: followed(name)[0].origins for name in WAYS}
    assert {name for name, origins in ends.items() if origins} == set(TAUGHT)


@pytest.mark.parametrize('name', TAUGHT)
def test_what_travels(name):
    run, seen = followed(name)
    network, (source, target) = run.trained.network, run.trained.vocabs
    set_seed(stream_seed('weights', run.seed))
    given = dict(new=weights(Summarizer(network.cfg)), teacher=seen['stage 1'].after)
    if name in DISTILLED:
        given['student'] = {f'reader.{n}': t for n, t in seen['distil'].after.items()}
    begun = seen['stage 3'].before
    assert run.origins.keys() == begun.keys() == dict(network.named_parameters()).keys()
    for n, t in begun.items():
        expected = (o for start, o in ELSEWHERE[name].items() if n.startswith(start))
        origin = next(expected, 'teacher')
        assert run.origins[n] == origin, n
        if origin != 'shared': assert torch.equal(t, given[origin][n]), n
    if name != 'pretrain_finetune': return
    n = EMBED + 'words.weight' # which is shared word by word
    for i, word in enumerate(source.tokens):
        known = word in target
        row = given['teacher'][n][target.ids[word]] if known else given['new'][n][i]
        assert torch.equal(begun[n][i], row), word
    assert 3 < sum(word in target for word in source.tokens) < len(source)


@pytest.mark.parametrize('name', DISTILLED)
def test_the_teacher_only_teaches(name):
    _, seen = followed(name)
    teacher, cfg = seen['stage 1'], DISTILLED[name]
    assert same(weights(teacher.model), teacher.after) and not teacher.model.training
    assert all(p.requires_grad and p.grad is None for p in teacher.model.parameters())
    assert seen['distil'].teacher_trains == cfg.teacher_dropout
    assert seen['distil'].cfg.eps == (cfg.eps or ONCE.eps)


@pytest.mark.parametrize('name', DISTILLED)
def test_what_the_student_learns(name):
    student, cfg = followed(name)[1]['distil'], DISTILLED[name]
    layers = {n for n in student.before if n.startswith('encoder.layers.')}
    depth = 2 if cfg.layers is None else cfg.layers
    assert {int(n.split('.')[2]) for n in layers} == set(range(depth))
    words, positions = 'embed.words.weight', 'embed.places.weight'
    names, norm = {words, positions} | layers, {'encoder.norm.weight', 'encoder.norm.bias'}
    assert student.before.keys() == names | norm
    # A key's bias adds the same to all scores of a query: its gradient is nothing but rounding.
    rounding = {n for n in names if n.endswith('attention.k.bias')}
    learned = names | (norm if cfg.normed else set())
    assert changed(student.before, student.after) | rounding == learned
    def moved(n): # rows of a table
        rows = (student.before[n] != student.after[n]).any(1)
        return set(rows.nonzero().flatten().tolist())
    src = student.data.src
    assert moved(words) == {int(i) for ids in src for i in ids}
    assert moved(positions) == set(range(1, max(map(len, src)) + 1))


@pytest.mark.parametrize('name', RECIPES)
@pytest.mark.parametrize('reads', ['both', 'text'])
def test_what_the_last_stage_trains(name, reads):
    run, seen = followed(name, reads)
    last, trained = seen[LAST[name]], run.trained
    assert last.model is trained.network and not trained.network.training
    frozen = last.before.keys() - changed(last.before, last.after)
    assert all(n.endswith('.k.bias') for n in frozen), frozen
    assert all(p.requires_grad for p in trained.network.parameters())
    told = dict(english_teacher=[], translated_pretraining=['pretrain', 'train'],
                ts_e=['distil', 'train'], ts_v=['distil', 'train'])
    assert list(run.histories) == told.get(name, ['train'])
    english = name in ('english_teacher', 'pipeline', 'monolingual')
    assert trained.language == ('en' if english else 'pt')
    assert trained.split == ('pretrain' if name == 'english_teacher' else 'train')
    assert (trained.translator is not None) == (name == 'pipeline')


# --- what a stage may see ---

@pytest.mark.parametrize('name', ['direct', 'pretrain_finetune', 'ts_e', 'ts_v'])
def test_samples_are_the_first_ones_in_stages_2_and_3(name):
    run, seen = followed(name, samples=5)
    kept, source = CORPUS.splits['train'][:5], run.trained.vocabs[0]
    for note, one in seen.items():
        if note == 'distil':
            ids = [source.encode(text).tolist() for text in said(kept, 'pt')]
            assert [s.tolist() for s in one.data.src] == ids
        else: assert one.data.records == (CORPUS.splits['pretrain'] if note == 'stage 1' else kept)
    assert set(source.tokens[3:]) == {w for text in said(kept, 'pt') for w in text.split()}


@pytest.mark.parametrize('n', [0, -1, 17, 10**9])
@pytest.mark.parametrize('name', ['direct', 'pretrain_finetune', 'ts_e'])
def test_impossible_samples(name, n):
    refused(lambda: follow(WAYS[name], samples=n),
            f'samples: {n} of 16 records cannot be had; choose 1 to 16.')
    refused(lambda: replace(training(), samples=n), f'{n} of 16 records')


# --- what is not possible ---

def test_unknown_arguments():
    "No recipe and no training swallows what it does not know."
    with pytest.raises(TypeError): training(sample=5)
    with pytest.raises(TypeError): direct(training(), 5)
    with pytest.raises(TypeError): ts_e_without_kd(training(), layers=1)
    with pytest.raises(TypeError): ts_v(training(), layers=1) # it has one, the vocabulary
    with pytest.raises(TypeError): ts_e(training(), layer=1)
    with pytest.raises(TypeError): training().train(form=None)
    with pytest.raises(TypeError): training().transplant(None, depth=1)
    with pytest.raises(TypeError): training().mix('train')


def without(split):
    "The corpus without one of its splits."
    splits = {name: records for name, records in CORPUS.splits.items() if name != split}
    return replace(CORPUS, splits=splits)


@pytest.mark.parametrize('recipe,changes,says', [
    (lambda run: run.train('val2'), {}, "there is no split 'val2'; did you mean 'val'?"),
    (lambda run: run.train(language='fr'), {}, "there is no transcript in 'fr'"),
    (lambda run: run.train('pretrain'), {}, 'choose one of: en'), # none in Portuguese
    (lambda run: run.train('pretrain', 'zh'), {}, "there is no transcript in 'zh'"),
    (direct, dict(language='zh'), "there is no transcript in 'zh'"),
    (mixed, dict(language='zh'), "there is no transcript in 'zh'"),
    (ts_e, dict(language='zh'), "there is no transcript in 'zh'"),
    (direct, dict(target_text='summary'), "did you mean 'summaries'?"),
    (mixed, dict(corpus=without('pretrain')), "there is no split 'pretrain'"),
    (ts_e, dict(corpus=without('pretrain')), "there is no split 'pretrain'"),
    (pipeline, dict(corpus=without('test')), "there is no split 'test'"),
    (translated_pretraining, dict(corpus=without('pretrain')), "there is no split 'pretrain'"),
    (lambda run: run.translate('test', 'zh', 'en'), dict(translator=lambda texts: texts),
     'choose one of: en, pt'),
    (lambda run: run.translate('tset', 'pt', 'en'), dict(translator=lambda texts: texts),
     "did you mean 'test'?"),
    (partial(ts_e, layers=3), {}, 'there is no layer 3; the encoder has 2'),
    (partial(ts_e, layers=-1), {}, 'there is no layer -1'),
    (partial(ts_e, align='wrap'), {}, "did you mean 'warp'?"),
    (partial(ts_v, scale='sum'), {}, "no value of scale 'sum'")])
def test_impossible_trainings(recipe, changes, says):
    refused(lambda: follow(recipe, **changes), says)


@pytest.mark.parametrize('how,says', [
    ({}, 'the student has no such parameter'),
    (dict(words='new'), 'the student has no such parameter'),
    (dict(layers='teacher'), 'reader.embed.words.weight: the student has no such parameter'),
    (dict(words='shard', layers='teacher'), "did you mean 'shared'?"),
    (dict(words='shared', layers='techer'), "did you mean 'teacher'?")])
def test_a_parameter_without_an_origin(how, says):
    run = training()
    teacher = run.teacher()
    refused(lambda: run.transplant(teacher, **how), says)
    assert not run.origins


def test_a_teacher_of_another_training():
    "Of another width, and of a network that looks where the student's reads."
    wide = training(network=replace(NETWORK, d=32)).teacher()
    run = training()
    refused(lambda: run.distil(wide), 'states of width 16 cannot be compared')
    refused(lambda: run.transplant(wide, words='new', layers='new'), 'the teacher has')
    refused(lambda: run.transplant(wide, words='shared', layers='teacher'), 'cannot be shared')
    blind = training(network=reading('video')).teacher()
    refused(lambda: run.transplant(blind, words='new', layers='new'),
            'the teacher has no such parameter')
    assert not run.histories and not run.origins


# --- one-sided systems ---

@pytest.mark.parametrize('name', sorted(NO_TEXT))
def test_video_only_goes_through_what_has_no_distillation(name):
    origins = follow(WAYS[name], network=reading('video')).origins
    assert not any('embed' in n for n in origins if n.startswith('reader'))
    if name in TAUGHT:
        assert {origins['reader.places.weight'], origins['reader.project.weight']} == {'teacher'}


@pytest.mark.parametrize('name', sorted({*RECIPES, 'ts_e warp'} - NO_TEXT))
def test_video_only_has_no_text_to_distil_or_translate(name):
    verb = 'distil' if name in DISTILLED else 'translate'
    refused(lambda: follow(WAYS[name], network=reading('video')), f'no text to {verb}')


def test_text_only_never_touches_the_video():
    class Dark(dict):
        def __getitem__(self, i): return CORPUS.features[i] * float('nan')
    dark = replace(CORPUS, features=Dark(CORPUS.features))
    a, b = (follow(ts_e, network=reading('text'), corpus=c) for c in (CORPUS, dark))
    assert same(final(a), final(b))


# --- the same again ---

@pytest.mark.parametrize('name', ['direct', 'pretrain_finetune', 'ts_e', 'ts_v released', 'mixed',
                                  'translated_pretraining', 'pipeline'])
def test_same_seed_same_weights(name, tmp_path):
    first, _ = followed(name)
    torch.manual_seed(99)
    folders = dict(out=tmp_path/'run', shared=tmp_path/'teachers')
    for where in ({}, folders): # in memory and in a folder
        again = follow(WAYS[name], **where)
        assert same(final(first), final(again)) and first.origins == again.origins
        for stage, history in first.histories.items():
            loss = history.curve('loss', 'train')
            assert loss.equals(again.histories[stage].curve('loss', 'train'))
    assert not same(final(first), final(follow(WAYS[name], seed=1)))


TWICE = replace(ONCE, epochs=2, checkpoint_every=1)
PLACES = [(name, stage) for name in ('ts_e', 'ts_v released')
          for stage in ('stage 1', 'distil', 'stage 3')]
PLACES += [('mixed', 'mixed'), ('translated_pretraining', 'translator'),
           ('translated_pretraining', 'stage 1'), ('translated_pretraining', 'stage 3'),
           ('pipeline', 'direct'), ('pipeline', 'translator')]

@pytest.mark.parametrize('name,stage', PLACES)
def test_interrupted_is_uninterrupted(name, stage, tmp_path, monkeypatch):
    fits = FITS.with_(epochs=2, checkpoint_every=1)
    assert fits.translation == TWICE
    straight, update, made = follow(WAYS[name], fits=fits), trainer.Trainer.update, []
    def fragile(self, batch):
        if self.about['note'].startswith(stage):
            made.append(self.at['step'])
            if len(made) == 4: raise KeyboardInterrupt
        return update(self, batch)
    monkeypatch.setattr(trainer.Trainer, 'update', fragile)
    def go(): return follow(WAYS[name], fits=fits, out=tmp_path/'run', shared=tmp_path/'teachers')
    with pytest.raises(KeyboardInterrupt): go()
    assert same(final(straight), final(go()))
    updates = {'stage 1': 8, 'mixed': 12}.get(stage, 4)
    assert made == [0, 1, 2, 3, *range(3, updates)] # none is made twice but the one that failed
    again = go()
    assert same(final(straight), final(again)) and len(made) == updates + 1
    assert again.corpus.splits == straight.corpus.splits # translations, too
    assert again.scores == straight.scores


# --- teachers ---

def folders(path): return sorted(p.name for p in path.iterdir() if p.is_dir() and p.name[0] != '.')


def test_one_teacher_for_all_who_may_share_it(tmp_path):
    names = ['pretrain_finetune', 'ts_e', 'ts_v', 'ts_e_without_kd', 'english_teacher']
    for k, name in enumerate(names):
        where = dict(out=tmp_path/str(k), shared=tmp_path/'teachers')
        follow(WAYS[name], samples=(None, 5)[k % 2], **where)
    assert len(folders(tmp_path/'teachers')) == 1


FEWER_JUDGES = corpus_with(val=CORPUS.splits['val'][:3])
FEWER_VIDEOS = corpus_with(pretrain=CORPUS.splits['pretrain'][:24])
OTHER_VIDEOS = world_corpus(How2World(replace(WORLD, sigma=3.)))

@pytest.mark.parametrize('changes', [
    dict(seed=1), dict(fits=replace(FITS, pretrain=TWICE)), dict(corpus=FEWER_VIDEOS),
    dict(corpus=FEWER_JUDGES), dict(corpus=OTHER_VIDEOS), dict(network=reading('text')),
    dict(network=replace(NETWORK, ffn=8)), dict(max_text=6), dict(max_video=2)],
    ids=lambda changes: next(iter(changes)))
def test_another_teacher(changes, tmp_path):
    training(shared=tmp_path).teacher()
    theirs = training(shared=tmp_path, **changes).teacher()
    assert len(folders(tmp_path)) == 2
    assert same(weights(theirs.network), weights(training(**changes).teacher().network))


# --- mixed training ---

def test_mixed_training_sees_both_languages():
    run, seen = followed('mixed')
    data, source = seen['mixed'].data, run.trained.vocabs[0]
    english, foreign = CORPUS.splits['pretrain'], CORPUS.splits['train']
    assert data.records == english + foreign
    texts = said(english, 'en') + said(foreign, 'pt')
    assert [source.decode(s) for s in data.src] == texts
    both = {*CORPUS.vocab('en', 'pretrain').tokens, *CORPUS.vocab('pt', 'train').tokens}
    assert {w for text in texts for w in text.split()} <= {*source.tokens} == both
    languages = [{data.languages[i] for i in batch} for batch in data.batches(0)]
    assert {'en', 'pt'} in languages # they meet within batches
    assert len(data.lengths) == len(data) == 48 and seen['mixed'].cfg == ONCE


def test_samples_of_mixed_training():
    _, seen = followed('mixed', samples=5)
    assert seen['mixed'].data.records == CORPUS.splits['pretrain'] + CORPUS.splits['train'][:5]


def test_shared_words_are_a_joint_vocabulary():
    """P+F: what is transplanted computes what a network with a table of all words of both languages
    would after stage 1."""
    run, seen = followed('pretrain_finetune')
    teacher, begun = seen['stage 1'].after, seen['stage 3'].before
    source, english = run.trained.vocabs[0], CORPUS.vocab('en', 'pretrain')
    joint, table = joint_vocab([english, source]), EMBED + 'words.weight'
    cfg = run.trained.network.cfg
    one, two = Summarizer(cfg).eval(), Summarizer(replace(cfg, source_words=len(joint))).eval()
    one.load_state_dict(begun)
    everything = teacher | {table: torch.zeros(len(joint), 16)}
    two.load_state_dict({n: t for n, t in everything.items() if n in two.state_dict()})
    with torch.no_grad():
        words = two.reader.embed.words.weight
        words[:len(english)] = teacher[table] # pre-training has moved these
        for w in source.tokens: # and has never met the others
            if w not in english: words[joint.ids[w]] = begun[table][source.ids[w]]
        mine, theirs = (run.data('train', 'pt', (vocab, english)).collate([3, 0, 7])
                        for vocab in (source, joint))
        assert torch.equal(one(mine).logits, two(theirs).logits)


# --- translation ---

def shout(texts): return [' '.join(reversed(t.split())) for t in texts]

def test_any_translator_will_do():
    asked = []
    def translate(texts): asked.append(texts); return shout(texts)
    run, seen = spied(translated_pretraining, translator=translate)
    assert asked == [said(CORPUS.splits['pretrain'], 'en'), said(CORPUS.splits['test'], 'en')]
    assert said(seen['stage 1'].data.records, 'pt') == shout(asked[0])
    assert set(seen) == {'stage 1', 'stage 3'}
    assert run.trained.vocabs[1].tokens == CORPUS.vocab('en', 'pretrain').tokens
    assert 'pt' not in CORPUS.splits['pretrain'][0].transcripts # the corpus is as it was


def test_a_perfect_translator_makes_a_pipeline_monolingual():
    test = CORPUS.splits['test']
    perfect = dict(zip(said(test, 'pt'), said(test, 'en')))
    def translate(texts): return [perfect[t] for t in texts]
    one, other = (follow(recipe, translator=translate) for recipe in (pipeline, monolingual))
    assert same(final(one), final(other)) and one.corpus.splits == other.corpus.splits
    assert one.scores['translation bleu4'] == pytest.approx(100, abs=1e-3) and not other.scores
    assert one.trained.translator is translate and other.trained.translator is None


@pytest.mark.parametrize('name', ['direct', 'pretrain_finetune', 'mixed', 'pipeline',
                                  'translated_pretraining'])
def test_without_validation_the_last_weights_count(name):
    "Whether the split is absent or empty."
    one, other = (follow(WAYS[name], corpus=c) for c in (without('val'), corpus_with(val=[])))
    assert same(final(one), final(other)) and one.scores == other.scores


def test_an_empty_split_decides_nothing():
    splits = {'pretrain': []} | {s: CORPUS.splits[s] for s in ('train', 'val')}
    one, other = follow(direct), follow(direct, corpus=replace(CORPUS, splits=splits))
    assert same(final(one), final(other))


def test_a_test_split_is_translated_once():
    asked = []
    follow(pipeline, translator=lambda texts: asked.append(texts) or texts)
    assert asked == [said(CORPUS.splits['test'], 'pt')]


def test_a_pipeline_reads_translations_only_when_it_is_tested():
    run, seen = followed('pipeline')
    network, (source, target) = run.trained.network, run.trained.vocabs
    train, test = CORPUS.splits['train'], CORPUS.splits['test']
    assert said(seen['direct'].data.records, 'en') == said(train, 'en')
    assert source.tokens == target.tokens
    assert network.reader.embed.words is network.writer.embed.words
    for mine, theirs in zip(run.corpus.splits['test'], test):
        assert mine.transcripts['pt'] == theirs.transcripts['pt']
        assert mine.transcripts['en'] != theirs.transcripts['en']
    assert run.corpus.splits['train'] is train and 0 <= run.scores['translation bleu4'] <= 100
    assert run.trained.translator(said(test, 'pt')) == said(run.corpus.splits['test'], 'en')
    pairs = seen['translator pt to en'].data
    assert [pairs.src_vocab.decode(s) for s in pairs.src] == said(train, 'pt')
    assert [pairs.tgt_vocab.decode(t) for t in pairs.tgt] == said(train, 'en')


def test_a_translator_is_trained_once(tmp_path, monkeypatch):
    same_for_all = dict(translator=reading('text'), shared=tmp_path/'teachers')
    for reads in ('both', 'text'):
        follow(pipeline, network=reading(reads), out=tmp_path/reads, **same_for_all)
    assert len(folders(tmp_path/'teachers')) == 1
    translator = training(**same_for_all).train_translator('pt', 'en')
    texts = said(CORPUS.splits['test'], 'pt')
    found = translator(texts)
    monkeypatch.setattr(stages, 'summarize', None) # what was translated is read
    assert translator(texts) == found and len(found) == len(texts)


def test_translations_of_unknown_quality():
    "It cannot be told without transcripts to compare with, but it goes."
    test = [replace(r, transcripts=dict(pt=r.transcripts['pt'])) for r in CORPUS.splits['test']]
    run = follow(pipeline, corpus=corpus_with(test=test))
    assert not run.scores and all('en' in r.transcripts for r in run.corpus.splits['test'])


# --- another language, another network ---

@pytest.mark.parametrize('name', RECIPES)
def test_another_language(name):
    "Nothing but the language's name changes."
    names = dict(pt='zh', en='en')
    def renamed(r): return replace(r, transcripts={names[l]: t for l, t in r.transcripts.items()})
    splits = {s: [renamed(r) for r in records] for s, records in CORPUS.splits.items()}
    chinese = follow(WAYS[name], corpus=replace(CORPUS, splits=splits), language='zh')
    usual, _ = followed(name)
    assert same(final(chinese), final(usual)) and chinese.origins == usual.origins
    assert chinese.trained.language == names[usual.trained.language]


@pytest.mark.parametrize('reads', ['both', 'text', 'video'])
def test_another_network(reads):
    rnn = RNNConfig(embed=8, hidden=8, state=8, layers=1, rows=8, reads=reads)
    how = dict(network=rnn, translator=reading('text'))
    recipes = [direct, mixed, monolingual, english_teacher]
    if reads != 'video': recipes += [pipeline, translated_pretraining]
    for recipe in recipes:
        network = follow(recipe, **how).trained.network
        assert type(network).__name__ == 'RNNSummarizer'
    for name in {*TAUGHT} & {*RECIPES}:
        dark = reads == 'video' and name in DISTILLED
        says = 'no text to distil' if dark else 'only transformers are transplanted'
        refused(lambda: follow(WAYS[name], **how), says)
