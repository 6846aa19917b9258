"Scores against published outputs and stored figures, odd input, Java missing, broken or stuck."
import json, os, shutil, subprocess, sys, time, warnings
from pathlib import Path
import numpy as np
import pytest
from mcls_nb import statistics
from mcls_nb.core import DataError, read_lines
from mcls_nb.summarize import metrics as M
from helpers import refused

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get('MCLS_DATA', ROOT.parent/'shared'/'data'))
FIGURES, OUTPUTS = DATA.parent/'fixtures'/'metrics'/'metrics.json', DATA/'how2_test_outputs'
def needs(there, reason): return pytest.mark.skipif(not there, reason=reason)
needs_figures = needs(FIGURES.is_file(), f'the stored figures are not in {FIGURES.parent}')
needs_outputs = needs(OUTPUTS.is_dir(), f'the published outputs are not in {OUTPUTS}')
needs_java = needs(shutil.which('java'), 'METEOR needs a Java runtime')
FAST = [m for m in M.DIALECTS['how2'] if m != 'meteor']
SETS = ['drop', 'swap', 'dup', 'identity', 'shifted', 'edge_some_empty', 'edge_all_empty',
        'edge_drop4', 'edge_swap4', 'edge_attached_punct', 'edge_no_4gram']
REFS = [
    'boil the rice for ten minutes . learn to cook with tips from a chef .',
    'hold the racket loosely . see how to serve in this free video .',
    'prune the roses in spring . get gardening help from a florist .',
    'mix blue and yellow paint for the grass .']
HYPS = [
    'boil the rice . learn to cook in this free video .',
    'see how to hold the racket in this free video .',
    '',
    'mix the paint .']

def figures(): return json.loads(FIGURES.read_text())
def systems():
    "The published scores of each system."
    expected = json.loads((OUTPUTS/'expected.json').read_text())
    short = lambda scores: {metric.removeprefix('how2_'): v for metric, v in scores.items()}
    return {name: short(scores) for name, scores in expected.items()}

@needs_figures
@pytest.mark.parametrize('name', SETS)
def test_stored_figures(name):
    f = figures()
    h, r, s = f['hypotheses'][name], f['references'], f['scores'][name]
    got = M.score(h, r, only=FAST)
    coco = s['coco_pycocoevalcap_fraction']
    same = lambda value: pytest.approx(value, abs=1e-9)
    assert got['cider'] == same(coco['CIDEr'])
    assert got['coco_rougeL'] == same(100 * coco['ROUGE_L'])
    for n in range(1, 5):
        ours, sacrebleu = got[f'bleu{n}'], s['sacrebleu']['none/none'][f'BLEU_{n}']
        assert ours == same(100 * coco[f'Bleu_{n}'])
        if ours > .01: assert ours == pytest.approx(sacrebleu, abs=1e-6)
    google, whitespace = M.score(h, r, 'google'), s['rouge_score']['whitespace']
    for m in ('rouge1', 'rouge2', 'rougeL'):
        assert got[m] == same(whitespace[m]['fmeasure'])
        assert google[m] == same(s['rouge_score']['default'][m]['fmeasure'])
    assert got['coco_rougeL'] == same(whitespace['rougeL_beta1.2_mean_x100'])
    assert M.score(h, r, 'sacrebleu', 'bleu')['bleu'] == same(s['sacrebleu']['13a/exp']['BLEU_4'])
    each = s['coco_nmtpytorch']['per_sentence']
    cider, rouge = (M.item_scores(h, r, m) for m in ('cider', 'coco_rougeL'))
    np.testing.assert_allclose(cider, each['CIDEr'], atol=1e-9)
    np.testing.assert_allclose(rouge, 100 * np.array(each['ROUGE_L']), atol=1e-9)

@needs_figures
def test_cider_depends_on_the_size_of_the_set():
    f = figures()
    hypotheses, references = f['hypotheses']['drop'], f['references']
    for n, value in f['cider_vs_corpus_size_drop'].items():
        got = M.score(hypotheses[:int(n)], references[:int(n)], only='cider')
        assert got['cider'] == pytest.approx(value, abs=1e-9)

@pytest.mark.slow
@needs_java
@needs_figures
def test_stored_meteor():
    f = figures()
    measured = M.meteor_items([f['hypotheses'][n] for n in SETS], f['references'])
    for name, metrics in zip(SETS, measured):
        meteor, stored = metrics['meteor'], f['scores'][name]['meteor_norm']
        assert meteor.value == pytest.approx(stored['corpus_x100'], abs=1e-9)
        of_items = meteor.finish(meteor.items)
        np.testing.assert_allclose(of_items, 100 * np.array(stored['segment']), atol=1e-9)

@needs_outputs
def test_a_published_system():
    name = 'Bart_forget_gate_img_TF'
    h, r = (read_lines(OUTPUTS/file) for file in (f'{name}.txt', 'test.tgt'))
    expected = systems()[name]
    for m, v in M.score(h, r, only=FAST).items():
        assert v == pytest.approx(expected[m], abs=.0051), m

@pytest.mark.slow
@needs_outputs
def test_every_published_system():
    expected, r = systems(), read_lines(OUTPUTS/'test.tgt')
    outputs = [read_lines(OUTPUTS/f'{name}.txt') for name in expected]
    only = list(M.DIALECTS['how2']) if shutil.which('java') else FAST
    checked = 0
    measured = M.measure(outputs, r, 'how2', only)
    for (name, values), h, metrics in zip(expected.items(), outputs, measured):
        got = {m: statistics.value for m, statistics in metrics.items()}
        got |= {f'google_{m}': v for m, v in M.score(h, r, 'google').items()}
        for m, v in values.items():
            if m in got: assert got[m] == pytest.approx(v, abs=.0051), (name, m)
        checked += len(values.keys() & got.keys())
    assert checked == 6 * (len(only) + 3)

@needs_outputs
def test_floors_of_how2():
    r = read_lines(OUTPUTS/'test.tgt')
    train, test = r[:1000], r[1000:1700]
    sentence, floor = M.constant_floor(train, test, only='rougeL')
    by_hand = 'learn how to use a in this free video clip on with tips from an expert .'
    assert floor['rougeL'] > M.score([by_hand] * len(test), test, only='rougeL')['rougeL']
    assert floor['rougeL'] > 38
    assert M.random_floor(train, test, only='rougeL')['rougeL'] == pytest.approx(25.1, abs=1)

@pytest.mark.parametrize('dialect', list(M.DIALECTS))
def test_empty_hypotheses(dialect):
    only = [m for m in M.DIALECTS[dialect] if m != 'meteor']
    assert set(M.score([''] * 4, REFS, dialect, only).values()) == {0.}
    assert set(M.score([' '] * 4, REFS, dialect, only).values()) == {0.}
    assert all(np.isfinite(v) and v > 0 for v in M.score(HYPS, REFS, dialect, only).values())
    assert M.score([''], ['a b c d'], dialect, only) == dict.fromkeys(only, 0.)

@pytest.mark.parametrize('dialect', list(M.DIALECTS))
def test_identity_is_the_ceiling(dialect):
    only = [m for m in M.DIALECTS[dialect] if m != 'meteor']
    for m, v in M.score(REFS, REFS, dialect, only).items():
        assert v == pytest.approx(10 if m == 'cider' else 100, abs=1e-6)

def test_white_space_and_other_alphabets():
    assert M.score(['学 做 菜'], ['学 做 菜'], only='rouge2') == dict(rouge2=100.)
    assert M.score(['学 做 菜'], ['学 做 菜'], 'google', 'rouge2') == dict(rouge2=0.)
    assert M.score(['a  b\n c '], ['a b c'], only=['rouge1', 'bleu1'])['rouge1'] == 100

@pytest.mark.parametrize('h, r', [
    ([], []), (['a'], ['a', 'b']), (['a', None], ['a', 'b']), (['a'], ['']), ('a', ['a']),
    (None, ['a']), ([['a']], ['a']), (['a'], [float('nan')]), ({'a': 1}, ['a'])])
def test_bad_texts(h, r):
    for f in (M.score, M.item_scores, M.report):
        with pytest.raises(DataError): f(h, r)

def test_bad_choices():
    for choice in (dict(dialect='coco'), dict(only='rouge'), dict(only=[]), dict(only='chrf'),
                   dict(dialect='google', only='bleu1')):
        with pytest.raises(DataError): M.score(HYPS, REFS, **choice)
    mistakes = [('meteor', 'how2'), ('bleu1', 'how2'), ('chrf', 'sacrebleu'), ('rouge9', 'how2')]
    for metric, dialect in mistakes:
        with pytest.raises(DataError): M.item_scores(HYPS, REFS, metric, dialect)
    for f in (M.constant_floor, M.random_floor):
        with pytest.raises(DataError, match='train_summaries'): f([], REFS)

def test_bad_numbers():
    for f in (statistics.bootstrap, statistics.seed_interval):
        for bad in ([], [[1.]], 3., ['a'], None):
            with pytest.raises(DataError): f(bad)
        for level in (0, 1, 95):
            with pytest.raises(DataError): f([1., 2.], level=level)
    with pytest.raises(DataError): statistics.paired_bootstrap([1.], [1., 2.])
    with pytest.raises(DataError): statistics.bootstrap([1., 2.], n=0)
    assert np.isnan(statistics.seed_interval([1., np.nan, 3.])).all()

def fake_java(tmp_path, monkeypatch, script):
    (tmp_path/'java').write_text(f'#!/bin/sh\n{script}\n')
    (tmp_path/'java').chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}:/usr/bin:/bin')

BROKEN = [ # a script that stands in for Java, what the warning says about it
    ('echo cannot find a runtime >&2; exit 1', 'cannot find a runtime'),
    ('cat > /dev/null', 'answered for 0 of'),
    ('echo nonsense; echo 1 2 3', 'answered for 0 of')]

@pytest.mark.parametrize('script, why', BROKEN)
def test_broken_java_is_one_sentence(tmp_path, monkeypatch, script, why):
    fake_java(tmp_path, monkeypatch, script)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        scores = M.score(HYPS, REFS, only=['rougeL', 'meteor'])
        table = M.report(HYPS, REFS, floor_from=REFS, only=['rougeL', 'meteor'])
    assert np.isnan(scores['meteor']) and scores['rougeL'] > 0
    row = table.set_index('metric').loc['meteor']
    assert row[['value', 'low', 'high', 'floor']].isna().all()
    assert len(caught) == 2 and all(why in str(w.message) for w in caught) # one for each call

@pytest.mark.parametrize('script, why', BROKEN)
def test_meteor_alone_with_a_broken_java_is_refused(tmp_path, monkeypatch, script, why):
    fake_java(tmp_path, monkeypatch, script)
    with warnings.catch_warnings():
        warnings.simplefilter('error') # the sentence is said once, not warned about as well
        refused(lambda: M.score(HYPS, REFS, only='meteor'), 'METEOR needs Java', why)
        refused(lambda: M.report(HYPS, REFS, only='meteor'), 'METEOR needs Java', why)

def test_meteor_alone_without_java_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path)) # an empty folder
    for call in (M.score, M.report, lambda h, r, only: M.report(h, r, floor_from=REFS, only=only)):
        message = refused(lambda: call(HYPS, REFS, only=['meteor']), 'no `java` on the PATH')
        assert 'install a Java runtime' in message and 'choose metrics that need none' in message
    with pytest.warns(UserWarning, match='METEOR is missing'):
        table = M.report(HYPS, REFS, only=['rougeL', 'meteor']).set_index('metric')
    assert table.value['rougeL'] > 0 and np.isnan(table.value['meteor'])

def test_stuck_java_is_ended(tmp_path, monkeypatch):
    fake_java(tmp_path, monkeypatch, f'echo $$ > {tmp_path}/pid; exec sleep 60')
    start = time.perf_counter()
    with pytest.raises(RuntimeError, match='no answer within 1 seconds'):
        M.count_with_java([('a', 'b')], seconds=1)
    assert time.perf_counter() - start < 20
    with pytest.raises(ProcessLookupError): os.kill(int((tmp_path/'pid').read_text()), 0)

@pytest.mark.slow
@needs_java
def test_meteor_takes_any_text():
    odd = ['a ||| b', 'SCORE ||| a ||| a', 'first\nsecond\r\nthird',
           'caf\u00e9 \u2028 \U0001f600', 'lone \ud800 half', 'EVAL', '\x00', 'a b c']
    meteor = M.meteor_items([odd, [''] * len(odd)], odd)[0]['meteor']
    of_items = meteor.finish(meteor.items)
    assert of_items[[2, 3, 7]] == pytest.approx([100] * 3) and np.isfinite(of_items).all()

@pytest.mark.slow
@needs_java
def test_meteor_is_what_pycocoevalcap_says():
    from pycocoevalcap.meteor.meteor import Meteor
    by_id = lambda texts: {i: [text] for i, text in enumerate(texts)}
    corpus, each = Meteor().compute_score(by_id(REFS), by_id(HYPS))
    meteor = M.meteor_items([HYPS], REFS)[0]['meteor']
    assert meteor.value == pytest.approx(100 * corpus, abs=1e-9)
    np.testing.assert_allclose(meteor.finish(meteor.items), 100 * np.array(each), atol=1e-9)

@pytest.mark.parametrize('dialect, names', [
    ('how2', ['bleu1', 'bleu2', 'rougeL', 'coco_rougeL']), ('google', ['rouge2']),
    ('sacrebleu', ['bleu', 'chrf'])])
def test_a_resample_scores_like_the_corpus_it_stands_for(dialect, names):
    rng = np.random.default_rng(0)
    for m, (items, finish) in M.measure([HYPS], REFS, dialect, names)[0].items():
        for _ in range(5):
            drawn = rng.integers(4, size=4)
            hypotheses, references = ([texts[i] for i in drawn] for texts in (HYPS, REFS))
            direct = M.score(hypotheses, references, dialect, m)[m]
            assert finish(items[drawn].sum(0)) == pytest.approx(direct, abs=1e-9)

def test_intervals_hold_the_truth_nearly_as_often_as_they_say():
    rng = np.random.default_rng(1)
    def share_that_holds_40(intervals):
        return np.mean([low <= 40 <= high for _, low, high in intervals])
    items = [statistics.bootstrap(rng.gamma(4., 10., 127), n=200) for _ in range(200)]
    assert .9 < share_that_holds_40(items) < .99
    seeds = [statistics.seed_interval(rng.normal(40, 2, 3)) for _ in range(500)]
    assert .92 < share_that_holds_40(seeds) < .98

def test_paired_is_narrower_and_blind_to_what_both_share():
    rng = np.random.default_rng(0)
    hard, gain = rng.normal(40, 15, 50), rng.normal(1, 2, 50)
    wide, narrow = statistics.bootstrap(hard + gain), statistics.paired_bootstrap(hard + gain, hard)
    assert narrow[2] - narrow[1] < (wide[2] - wide[1]) / 3
    np.testing.assert_allclose(narrow, statistics.bootstrap(gain), atol=1e-9)

def test_lcs_agrees_with_rouge_score():
    from rouge_score.rouge_scorer import _lcs_table
    rng = np.random.default_rng(0)
    for _ in range(100):
        a, b = (rng.choice(list('abcde'), size=rng.integers(0, 150)).tolist() for _ in range(2))
        assert M.SubsequenceLength(a)(b) == _lcs_table(a, b)[-1][-1]

def test_constant_sentence_beats_every_summary_it_was_chosen_from():
    sentence = M.constant_sentence(REFS)
    value = lambda s: M.score([s] * len(REFS), REFS, only='rougeL')['rougeL']
    assert value(sentence) >= max(map(value, REFS)) - 1e-9
    assert M.constant_sentence(['a b']) == 'a b'

def test_report_repeats_itself():
    a, b = (M.report(HYPS * 5, REFS * 5, floor_from=REFS, only=FAST) for _ in range(2))
    assert a.equals(b) and list(a.metric) == FAST and a.attrs['floor'] == M.constant_sentence(REFS)
    assert M.report(HYPS, REFS, only='rougeL').floor.isna().all()
    alone = M.report(HYPS[:1], REFS[:1], only='rougeL')
    assert alone.low.isna().all() and alone.value[0] > 0

def test_slots():
    slots = [dict(thing='rice', tool='big pot'), dict(thing='racket'), dict(thing='rose')]
    accuracy = lambda *texts: M.slot_accuracy(list(texts), slots)
    assert accuracy('rice in a big  pot', 'the racket', 'roses') == dict(
        thing=200/3, tool=100., all=200/3)
    assert accuracy('rice in a pot that is big', '', 'rose') == dict(
        thing=200/3, tool=0., all=100/3)
    for bad in ([{}], ['rice'], [dict(thing='')], [dict(thing=None)], [dict(all='x')], [],
                [dict(a='x')] * 2):
        with pytest.raises(DataError): M.slot_accuracy(['rice'], bad)

def test_signatures_name_every_metric():
    for d, names in M.DIALECTS.items(): assert tuple(M.signature(d)) == names
    with pytest.raises(DataError): M.signature('coco')

def test_import_is_light():
    heavy = "{'rouge_score', 'sacrebleu', 'pycocoevalcap', 'scipy', 'torch', 'nltk'}"
    code = f'import sys, mcls_nb.summarize.metrics; loaded = {heavy} & set(sys.modules)'
    code += '; assert not loaded, loaded'
    subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)
