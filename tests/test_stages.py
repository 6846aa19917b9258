"One stage: what distillation compares, which parameters have no origin, what is no translation."
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers import refused
from torch.nn import functional as F

from mcls_nb.summarize import stages
from mcls_nb.summarize.models import Summarizer
from mcls_nb.summarize.stages import (
    RELEASED, DistilConfig, DistilData, Translator, distil, distil_loss, new_student, origins,
    parallel_texts, translated, transplant)
from mcls_nb.text import Vocab
from summary_world import CORPUS, NETWORK, ONCE, training


def stage_2(**changes):
    "A teacher, both sides of the transcripts, and the network of stage 3, with fields changed."
    run = training()
    teacher = run.teacher()
    vocabs = run.foreign_vocabs(teacher) # Portuguese in, English out
    mine, theirs = run.data('train', 'pt', vocabs), run.data('train', 'en', teacher.vocabs)
    network = replace(run.config(vocabs, share_words=False), **changes)
    return SimpleNamespace(teacher=teacher.network, vocabs=vocabs, network=network, mine=mine,
                           theirs=theirs)


def distilled(s, cfg=DistilConfig(), mine=None, theirs=None):
    "The student of `stage_2`."
    return distil(s.teacher, mine or s.mine, theirs or s.theirs, s.network, cfg, ONCE)[0]


# --- distillation ---

@pytest.mark.parametrize('cfg', [
    DistilConfig(), DistilConfig(1), DistilConfig(normed=True), DistilConfig(scale='released')])
def test_loss_of_one_pair(cfg):
    "Eqs. 8 and 9 by PyTorch's own pooling and loss."
    s = stage_2()
    student = new_student(s.network, 2 if cfg.layers is None else cfg.layers).eval()
    data = DistilData(s.mine, s.theirs, s.teacher.reader, cfg, 8)
    def states(reader, ids):
        x = reader.states(ids[None], torch.ones(1, len(ids), dtype=torch.bool), cfg.layers)
        return reader.encoder.norm(x) if cfg.normed else x
    for i in (0, 7):
        total, n = distil_loss(cfg)(student, data.collate([i]))
        x, y = states(student, s.mine.src[i]), states(s.teacher.reader, s.theirs.src[i])
        pooled = F.adaptive_avg_pool1d(y.transpose(1, 2), x.shape[1]).transpose(1, 2)
        words = len(s.mine.tgt[i]) if cfg.scale == 'released' else 1
        torch.testing.assert_close(total / n, F.smooth_l1_loss(x, pooled) / words)


def test_shuffled_pairs_are_another_transcripts():
    s = stage_2()
    def targets(shuffled):
        cfg = DistilConfig(align='warp', shuffled=shuffled)
        return DistilData(s.mine, s.theirs, s.teacher.reader, cfg, 8).targets
    right, wrong = targets(False), targets(True)
    assert len(right) == len(wrong) == 16
    for i in range(16): assert torch.equal(wrong[i], right[(i + 1) % 16])


def test_the_teacher_rests_after_an_accident(monkeypatch):
    s = stage_2()
    def accident(*args, **more):
        assert s.teacher.training # as released
        raise KeyboardInterrupt
    monkeypatch.setattr(stages, 'fit', accident)
    with pytest.raises(KeyboardInterrupt): distilled(s, RELEASED)
    assert not s.teacher.training


@pytest.mark.parametrize('layers,says', [
    (3, 'there is no layer 3; the encoder has 2'), (-1, 'there is no layer -1; the encoder has 2')])
def test_impossible_layers(layers, says):
    s = stage_2()
    refused(lambda: distilled(s, DistilConfig(layers)), says)
    assert not s.teacher.training


@pytest.mark.parametrize('how,says', [
    (dict(align='wrap'), "did you mean 'warp'"), (dict(scale='sum'), "no value of scale 'sum'"),
    (dict(scale='released ', layers=0), "did you mean 'released'")])
def test_impossible_ways_to_distil(how, says):
    refused(lambda: DistilConfig(**how), says)
    refused(lambda: replace(RELEASED, **how), says)


def test_a_student_of_another_width():
    s = stage_2(d=32)
    refused(lambda: distilled(s),
            'states of width 32 cannot be compared with states of width 16')
    assert not s.teacher.training


@pytest.mark.parametrize('longer', ['mine', 'theirs'])
def test_records_that_do_not_pair_up(longer):
    s = stage_2()
    shorter = dict(theirs=s.theirs.head(5)) if longer == 'mine' else dict(mine=s.mine.head(5))
    refused(lambda: distilled(s, **shorter), 'the two languages are not of the same records')


# --- transplantation ---

def test_a_parameter_that_nobody_set():
    s = stage_2()
    student = distilled(s, DistilConfig(1))
    def fill(cfg, *given): return transplant(Summarizer(cfg), s.teacher, *given)
    deeper, missing = replace(s.network, decoder_layers=2), 'has no such parameter'
    refused(lambda: fill(s.network, student, 2), 'reader.encoder.layers.1',
            f'the student {missing}')
    refused(lambda: fill(s.network), f'reader.embed.words.weight: the student {missing}')
    refused(lambda: fill(deeper, student, 1), 'writer.layers.1', f'the teacher {missing}')
    # what a system does not read need not travel
    came = fill(replace(s.network, reads='text'), student, 1)
    assert set(came.values()) == {'teacher', 'student'}


FRESH = dict(words='new', layers='new')

@pytest.mark.parametrize('how,network,says', [
    (FRESH, dict(target_words=999),
     ('writer.embed.words.weight: the teacher has (',
      ', 16), this model (999, 16); use the same vocabularies')),
    (FRESH, dict(d=32), ('the teacher has',)),
    (dict(words='shard', layers='teacher'), {},
     ("there is no origin of words 'shard'; did you mean 'shared'",)),
    (dict(words='new', layers='techer'), {},
     ("there is no origin of layers 'techer'; did you mean 'teacher'",))])
def test_a_teacher_that_does_not_fit(how, network, says):
    s = stage_2(**network)
    model = Summarizer(s.network)
    refused(lambda: transplant(model, s.teacher, depth=2, vocabs=s.vocabs, **how), *says)


@pytest.mark.parametrize('change', ['width', 'vocabulary', 'none'])
def test_shared_words_of_another_teacher(change):
    s = stage_2(**(dict(d=32) if change == 'width' else {}))
    source, english = s.vocabs
    other = Vocab([f'w{i}' for i in range(900)] + source.tokens[3:])
    vocabs = dict(width=(source, english), vocabulary=(source, other), none=None)[change]
    how = dict(words='shared', layers='teacher', vocabs=vocabs)
    refused(lambda: transplant(Summarizer(s.network), s.teacher, **how),
            'words cannot be shared between tables of')


def test_an_origin_for_every_parameter():
    "Without a student none is named; depth counts from below; a norm goes with what it normed."
    names = [name for name, _ in Summarizer(stage_2().network).named_parameters()]
    def came(*args, **how): return origins(names, *args, **how)
    assert set(came(2, 'new', 'new').values()) == {'teacher', 'new'}
    assert set(came(0, 'new', 'teacher')) == set(names)
    one, two = came(1), came(2)
    moved = {name for name in names if one[name] != two[name]}
    assert moved and all(name.startswith('reader.encoder.layers.1.') for name in moved)
    normed = came(2, normed=True)
    moved = {name for name in names if normed[name] != two[name]}
    assert moved == {'reader.encoder.norm.weight', 'reader.encoder.norm.bias'}


# --- translation ---

def shout(texts): return [' '.join(reversed(t.split())) for t in texts]

LOSERS = [lambda texts: texts[1:], lambda texts: [None] * len(texts), lambda texts: []]

@pytest.mark.parametrize('translate', LOSERS)
def test_a_translator_that_loses_texts(translate):
    refused(lambda: translated(CORPUS, 'test', 'pt', 'en', translate),
            'not every one of 4 transcripts came back')


def test_nothing_to_translate():
    refused(lambda: translated(CORPUS, 'pretrain', 'pt', 'en', shout), 'choose one of: en')
    refused(lambda: translated(CORPUS, 'tset', 'pt', 'en', shout), "did you mean 'test'")
    new = translated(CORPUS, 'test', 'pt', 'en', shout)
    for old, now in zip(CORPUS.splits['test'], new.splits['test']):
        [english] = shout([old.transcripts['pt']])
        assert now == replace(old, transcripts=old.transcripts | dict(en=english))
    assert new.splits['train'] is CORPUS.splits['train']


def test_parallel_texts_that_are_not_there():
    records, vocab = CORPUS.splits['pretrain'], CORPUS.vocab('en')
    refused(lambda: parallel_texts(records, 'en', 'pt', (vocab, vocab), 800), 'choose one of: en')
    refused(lambda: parallel_texts(records, 'pt', 'en', (vocab, vocab), 800), 'choose one of: en')


def test_translations_are_kept_for_each_list_of_texts(tmp_path, monkeypatch):
    vocabs = CORPUS.vocab('pt'), CORPUS.vocab('en')
    sizes = dict(source_words=len(vocabs[0]), target_words=len(vocabs[1]), reads='text')
    translate = Translator(replace(NETWORK, **sizes).build().eval(), vocabs, 800, 6, tmp_path)
    texts = [r.transcripts['pt'] for r in CORPUS.splits['test']]
    first, other = translate(texts), translate(texts[:2])
    assert all(len(text.split()) <= 6 for text in first) and first[:2] == other
    assert len(list(tmp_path.glob('texts-*.json'))) == 2
    monkeypatch.setattr(stages, 'summarize', None) # what was translated is read
    assert translate(texts) == first
    with pytest.raises(TypeError): translate(texts[:3])
