"""Figures show the numbers that they are given: tested on values, at the sizes of real videos."""
import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pandas as pd
import pytest

from mcls_nb.architecture import architecture_svg
from mcls_nb.core import DataError
from mcls_nb.explanation_plots import (
    attention_fig, gate_fig, moment_curve_fig, ranking_fig, share_fig)
from mcls_nb.plots import curve_fig, score_fig, table_fig

RNG = np.random.default_rng(0)
WORDS = ['the', 'a', 'the', '<eos>', '$x$', '<b>bold</b>', '']

def named(figure):
    "The traces of a figure by their names."
    return {t.name: t for t in figure.data}


# --- summaries

@pytest.mark.parametrize('shape', [(1, 1), (1, 7), (7, 1), (7, 7), (40, 400)])
def test_every_cell_is_the_weight_of_its_words(shape):
    weights = RNG.dirichlet(np.ones(shape[1]), shape[0])
    rows, columns = ([WORDS[i % 7] for i in range(n)] for n in shape)
    heat = attention_fig(weights, rows, columns).data[0]
    np.testing.assert_allclose(heat.z, weights, atol=1e-6)
    assert len(set(heat.y)) == shape[0] and len(set(heat.x)) == shape[1] # repeated words stay apart

def test_swapping_rows_swaps_cells():
    weights = RNG.dirichlet(np.ones(3), 2)
    there = attention_fig(weights, ['one', 'two'], list('xyz')).data[0]
    back = attention_fig(weights[::-1], ['two', 'one'], list('xyz')).data[0]
    np.testing.assert_array_equal(there.z, back.z[::-1])
    assert [y.split()[0] for y in there.y] == [y.split()[0] for y in back.y][::-1]

def test_a_long_transcript_stays_small_and_complete():
    weights = RNG.dirichlet(np.ones(800), 40)
    fig = attention_fig(weights, ['word'] * 40, ['palavra'] * 800, window=60)
    assert fig.data[0].z.shape == (40, 800) and len(fig.to_json()) < 400_000
    low, high = fig.layout.xaxis.range
    assert high - low == 60

def test_the_gate_figure_shows_means():
    gate, attention = RNG.random((6, 32)), RNG.dirichlet(np.ones(9), 6)
    fig = gate_fig(gate, attention, list('abcdef'))
    np.testing.assert_allclose(fig.data[0].y, gate.mean(1))
    np.testing.assert_allclose(fig.data[1].y, attention.mean(0), atol=1e-6)

def test_curves_are_the_history():
    values = dict(train=(3, 2, 1), valid=(3, 1, 2))
    history = pd.DataFrame([
        dict(epoch=e, step=3 * e, split=split, metric='loss', value=v)
        for split, vs in values.items()
        for e, v in enumerate(vs, 1)])
    fig = curve_fig(history)
    lines = named(fig)
    assert list(lines['train loss'].y) == [3, 2, 1] and list(lines['valid loss'].x) == [1, 2, 3]
    assert any(t.name.startswith('best: epoch 2') for t in fig.data)

def test_scores_stand_at_their_values():
    table = pd.DataFrame([
        dict(label='VDF', metric='rougeL', value=60., low=58., high=63.),
        dict(label='MT', metric='rougeL', value=50., low=np.nan, high=np.nan)])
    points = [list(t.x) for t in score_fig(table).data if t.x is not None]
    assert any(60. in x for x in points) and any(50. in x for x in points)

SYSTEMS = [dict(), dict(encoder_fusion=False), dict(decoder_fusion=False),
           dict(reads='text'), dict(reads='video')]

@pytest.mark.parametrize('system', SYSTEMS)
def test_the_architecture_is_well_formed_and_repeatable(system):
    svg = architecture_svg(**system)
    assert svg == architecture_svg(**system) and len(svg) < 40_000
    assert ElementTree.fromstring(svg).tag.endswith('svg')

def test_figures_are_plain_json():
    assert json.loads(attention_fig(np.eye(2), list('ab'), list('ab')).to_json())['data']


# --- moments

CURVES = RNG.normal(size=(2, 40))
START, END = RNG.dirichlet(np.ones(40)), RNG.dirichlet(np.ones(40))

def answers(*moments):
    "Ranked moments (video, start, end), each with a lower score than the last."
    ranked = [dict(video=v, start=s, end=e, score=1. / k) for k, (v, s, e) in enumerate(moments, 1)]
    return pd.DataFrame(ranked, columns=['video', 'start', 'end', 'score'])

ENGLISH = answers(('a', 0, 6), ('b', 3, 9), ('a', 9, 12))
CHINESE = answers(('b', 4.5, 9), ('c', 0, 3))

@pytest.mark.parametrize('shift', [0, 1])
def test_the_span_drawn_is_the_span_predicted(shift):
    st, ed = 4, 9 # as `SpanRule.seconds` reads them
    seconds = st * 1.5, (ed + shift) * 1.5
    fig = moment_curve_fig(CURVES, START, END, seconds, (3., 12.), shift=shift)
    shapes = {s.name: (s.x0, s.x1, s.visible) for s in fig.layout.shapes}
    assert shapes == {'predicted': (6., 13.5 + 1.5 * shift, True), 'true': (3., 12., True)}
    lines = named(fig)
    assert (lines['start'].x[st], lines['end'].x[ed]) == seconds # it ends where its curves say
    shown = dict(frames=CURVES[0], subtitles=CURVES[1], mean=CURVES.mean(0), start=START, end=END)
    for name, y in shown.items(): np.testing.assert_array_equal(lines[name].y, y)

def test_moment_figures_of_any_video_have_the_same_traces():
    known = moment_curve_fig(CURVES, START, END, (3., 6.), (3., 6.), CURVES, ['word ' * 40] * 40)
    short = CURVES[:, :3]
    other = moment_curve_fig(short, START[:3], END[:3], (0., 3.), None, short, [''] * 3)
    names = lambda fig: [(t.name, t.yaxis) for t in fig.data]
    assert names(known) == names(other)
    assert [s.visible for s in other.layout.shapes] == [True, False]
    mean = next(t for t in known.data if t.name == 'mean')
    assert '<br>' in mean.customdata[0] and len(known.to_json()) < 60_000

def test_a_ring_marks_the_best_clip_of_each_stream():
    fig = moment_curve_fig(CURVES, START, END, cosines=CURVES)
    np.testing.assert_array_equal(named(fig)['best clip'].x, (CURVES.argmax(1) + .5) * 1.5)

def test_swapping_languages_swaps_columns():
    there = ranking_fig(dict(en=ENGLISH, zh=CHINESE))
    back = ranking_fig(dict(zh=CHINESE, en=ENGLISH))
    assert there.data[1].text == back.data[2].text and there.data[2].text == back.data[1].text
    assert there.layout.xaxis.ticktext == back.layout.xaxis.ticktext[::-1]
    ranks, swapped = (fig.data[0].y.reshape(-1, 3)[:, :2] for fig in (there, back))
    np.testing.assert_array_equal(ranks, swapped[:, ::-1])

def test_lines_join_the_same_moment_only():
    def joined(same):
        lines = ranking_fig(dict(en=ENGLISH, zh=CHINESE), same=same).data[0]
        return lines.y.reshape(-1, 3)[:, :2].tolist()
    assert joined(.7) == [[2, 1]] and joined(.8) == [] # b: 4.5 of 6 seconds

def test_a_ranking_shows_what_is_right_and_what_is_looked_at():
    lines, en, zh, ring = ranking_fig(dict(en=ENGLISH, zh=CHINESE), ('b', 3, 9), ('en', 2)).data
    assert en.marker.symbol == ('circle', 'diamond', 'circle')
    assert zh.marker.symbol == ('diamond', 'circle') and (ring.x[0], ring.y[0]) == (0, 3)
    nothing = ranking_fig(dict(en=ENGLISH, zh=CHINESE.iloc[:0]))
    assert len(nothing.data) == 4 # nothing found: still the same traces

def test_shares_and_tables_show_their_numbers():
    bars = share_fig({'a': (1, 2), 'b': (3, -4)}).data
    assert {b.name: list(b.x) for b in bars} == {'frames': [1, 3], 'subtitles': [2, -4]}
    table = pd.DataFrame(RNG.normal(size=(3, 4)), list('abc'), list('wxyz'))
    heat = table_fig(table, digits=2).data[0]
    for r in 'abc':
        for c in 'wxyz':
            cell = heat.y.index(r), heat.x.index(c)
            assert heat.z[cell] == table.loc[r, c] and heat.text[cell] == f'{table.loc[r, c]:.2f}'


# --- bad input

AB, ONE_LOSS = list('ab'), dict(epoch=1, split='train', metric='loss', value=1.)
WRONG = {
    'one head too many': lambda: attention_fig(np.ones((2, 3, 3)), list('abc'), list('abc')),
    'another number of words': lambda: attention_fig(np.ones((2, 3)), AB, list('abcd')),
    'negative weights': lambda: attention_fig(-np.ones((2, 2)), AB, AB),
    'NaN': lambda: attention_fig(np.full((2, 2), np.nan), AB, AB),
    'a gate beyond 1': lambda: gate_fig(np.full((2, 4), 1.5), np.ones((2, 3)) / 3, AB),
    'a gate of other words': lambda: gate_fig(np.ones((3, 4)), np.ones((2, 3)) / 3, AB),
    'no such column': lambda: curve_fig(pd.DataFrame(dict(epoch=[1], value=[2.]))),
    'no such metric': lambda: curve_fig(pd.DataFrame([ONE_LOSS]), metrics=('bleu',)),
    'an empty table': lambda: score_fig(pd.DataFrame(columns=['label', 'value', 'low', 'high'])),
    'another kind of input': lambda: architecture_svg(reads='sound'),
    'one stream': lambda: moment_curve_fig(CURVES[:1], START, END),
    'probabilities of another video': lambda: moment_curve_fig(CURVES, START[:5], END),
    'subtitles of another video': lambda: moment_curve_fig(CURVES, START, END, texts=['a']),
    'padding': lambda: moment_curve_fig(np.where(CURVES > 1, np.nan, CURVES), START, END),
    'a span without end': lambda: moment_curve_fig(CURVES, START, END, (3.,)),
    'three languages': lambda: ranking_fig(dict.fromkeys(('en', 'zh', 'pt'), ENGLISH)),
    'a ranking without scores': lambda: ranking_fig({'en': ENGLISH.drop(columns='score')}),
    'parts of one stream': lambda: share_fig({'a': 1.}),
    'a table of words': lambda: table_fig(pd.DataFrame(dict(a=['b']))),
    'no table': lambda: table_fig(None),
}

@pytest.mark.parametrize('case', WRONG)
def test_what_cannot_be_drawn_is_explained(case):
    with pytest.raises(DataError) as e: WRONG[case]()
    assert '\n' not in str(e.value) and str(e.value).endswith('.')
