"""Figures show the numbers that they are given: tested on values, at sizes that real videos have."""
import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pandas as pd
import pytest

from mcls_nb.core import DataError
from mcls_nb.plots import architecture_svg, attention_fig, curve_fig, gate_fig, moment_curve_fig, ranking_fig, score_fig, share_fig, table_fig

RNG = np.random.default_rng(0)
WORDS = ['the', 'a', 'the', '<eos>', '$x$', '<b>bold</b>', '']


@pytest.mark.parametrize('shape', [(1, 1), (1, 7), (7, 1), (7, 7), (40, 400)])
def test_every_cell_is_the_weight_of_its_words(shape):
    weights = RNG.dirichlet(np.ones(shape[1]), shape[0])
    rows, columns = ([WORDS[i % 7] for i in range(n)] for n in shape)
    heat = attention_fig(weights, rows, columns).data[0]
    np.testing.assert_allclose(heat.z, weights, atol=1e-6)
    assert len(set(heat.y)) == shape[0] and len(set(heat.x)) == shape[1] # a repeated word keeps its own row

def test_swapping_rows_swaps_cells():
    weights = RNG.dirichlet(np.ones(3), 2)
    a, b = (attention_fig(w, words, list('xyz')).data[0] for w, words in ((weights, ['one', 'two']), (weights[::-1], ['two', 'one'])))
    np.testing.assert_array_equal(a.z, b.z[::-1])
    assert [y.split()[0] for y in a.y] == [y.split()[0] for y in b.y][::-1]

def test_a_long_transcript_stays_small_and_complete():
    fig = attention_fig(RNG.dirichlet(np.ones(800), 40), ['word'] * 40, ['palavra'] * 800, window=60)
    assert fig.data[0].z.shape == (40, 800) and len(fig.to_json()) < 400_000
    low, high = fig.layout.xaxis.range
    assert high - low == 60

def test_the_gate_figure_shows_means():
    gate, attention = RNG.random((6, 32)), RNG.dirichlet(np.ones(9), 6)
    fig = gate_fig(gate, attention, list('abcdef'))
    np.testing.assert_allclose(fig.data[0].y, gate.mean(1))
    np.testing.assert_allclose(fig.data[1].y, attention.mean(0), atol=1e-6)

def test_curves_are_the_history():
    history = pd.DataFrame([dict(epoch=e, step=3 * e, split=s, metric='loss', value=v) for s, vs in dict(train=(3, 2, 1), valid=(3, 1, 2)).items() for e, v in enumerate(vs, 1)])
    fig = curve_fig(history)
    lines = {t.name: t for t in fig.data}
    assert list(lines['train loss'].y) == [3, 2, 1] and list(lines['valid loss'].x) == [1, 2, 3]
    assert any(t.name.startswith('best: epoch 2') for t in fig.data)

def test_scores_stand_at_their_values():
    table = pd.DataFrame([dict(label='VDF', metric='rougeL', value=60., low=58., high=63.), dict(label='MT', metric='rougeL', value=50., low=np.nan, high=np.nan)])
    dots = score_fig(table).data
    assert any(60. in list(t.x) for t in dots if t.x is not None) and any(50. in list(t.x) for t in dots if t.x is not None)

WRONG = {
    'one head too many': lambda: attention_fig(np.ones((2, 3, 3)), list('abc'), list('abc')),
    'another number of words': lambda: attention_fig(np.ones((2, 3)), list('ab'), list('abcd')),
    'negative weights': lambda: attention_fig(-np.ones((2, 2)), list('ab'), list('ab')),
    'NaN': lambda: attention_fig(np.full((2, 2), np.nan), list('ab'), list('ab')),
    'a gate beyond 1': lambda: gate_fig(np.full((2, 4), 1.5), np.ones((2, 3)) / 3, list('ab')),
    'a gate of other words': lambda: gate_fig(np.ones((3, 4)), np.ones((2, 3)) / 3, list('ab')),
    'no such column': lambda: curve_fig(pd.DataFrame(dict(epoch=[1], value=[2.]))),
    'no such metric': lambda: curve_fig(pd.DataFrame([dict(epoch=1, split='train', metric='loss', value=1.)]), metrics=('bleu',)),
    'an empty table': lambda: score_fig(pd.DataFrame(columns=['label', 'value', 'low', 'high'])),
    'another kind of input': lambda: architecture_svg(reads='sound'),
}

@pytest.mark.parametrize('system', [dict(), dict(encoder_fusion=False), dict(decoder_fusion=False), dict(reads='text'), dict(reads='video')])
def test_the_architecture_is_well_formed_and_repeatable(system):
    svg = architecture_svg(**system)
    assert svg == architecture_svg(**system) and ElementTree.fromstring(svg).tag.endswith('svg') and len(svg) < 40_000

def test_figures_are_plain_json(): json.loads(attention_fig(np.eye(2), list('ab'), list('ab')).to_json())


# --- moments

CURVES, START, END = RNG.normal(size=(2, 40)), RNG.dirichlet(np.ones(40)), RNG.dirichlet(np.ones(40))

def answers(*rows): return pd.DataFrame([dict(video=v, start=s, end=e, score=1. / k) for k, (v, s, e) in enumerate(rows, 1)], columns=['video', 'start', 'end', 'score'])

ENGLISH, CHINESE = answers(('a', 0, 6), ('b', 3, 9), ('a', 9, 12)), answers(('b', 4.5, 9), ('c', 0, 3))

@pytest.mark.parametrize('shift', [0, 1])
def test_the_span_drawn_is_the_span_predicted(shift):
    st, ed = 4, 9 # as `SpanRule.seconds` reads them
    fig = moment_curve_fig(CURVES, START, END, (st * 1.5, (ed + shift) * 1.5), (3., 12.), shift=shift)
    assert {s.name: (s.x0, s.x1, s.visible) for s in fig.layout.shapes} == {'predicted': (6., 13.5 + 1.5 * shift, True), 'true': (3., 12., True)}
    lines = {t.name: t for t in fig.data}
    assert (lines['start'].x[st], lines['end'].x[ed]) == (6., 13.5 + 1.5 * shift) # the span ends where its curves say
    for name, y in dict(frames=CURVES[0], subtitles=CURVES[1], mean=CURVES.mean(0), start=START, end=END).items(): np.testing.assert_array_equal(lines[name].y, y)

def test_moment_figures_of_any_video_have_the_same_traces():
    known = moment_curve_fig(CURVES, START, END, (3., 6.), (3., 6.), CURVES, ['word ' * 40] * 40)
    other = moment_curve_fig(CURVES[:, :3], START[:3], END[:3], (0., 3.), None, CURVES[:, :3], [''] * 3)
    names = lambda f: [(t.name, t.yaxis) for t in f.data]
    assert names(known) == names(other) and [s.visible for s in other.layout.shapes] == [True, False]
    mean = next(t for t in known.data if t.name == 'mean')
    assert '<br>' in mean.customdata[0] and len(known.to_json()) < 60_000

def test_a_ring_marks_the_best_clip_of_each_stream():
    ring = next(t for t in moment_curve_fig(CURVES, START, END, cosines=CURVES).data if t.name == 'best clip')
    np.testing.assert_array_equal(ring.x, (CURVES.argmax(1) + .5) * 1.5)

def test_swapping_languages_swaps_columns():
    there, back = (ranking_fig(dict(pairs)) for pairs in ([('en', ENGLISH), ('zh', CHINESE)], [('zh', CHINESE), ('en', ENGLISH)]))
    assert there.data[1].text == back.data[2].text and there.data[2].text == back.data[1].text
    assert there.layout.xaxis.ticktext == back.layout.xaxis.ticktext[::-1]
    np.testing.assert_array_equal(there.data[0].y.reshape(-1, 3)[:, :2], back.data[0].y.reshape(-1, 3)[:, [1, 0]])

def test_lines_join_the_same_moment_only():
    joined = lambda same: ranking_fig({'en': ENGLISH, 'zh': CHINESE}, same=same).data[0].y.reshape(-1, 3)[:, :2].tolist()
    assert joined(.7) == [[2, 1]] and joined(.8) == [] # b: 4.5 of 6 seconds

def test_a_ranking_shows_what_is_right_and_what_is_looked_at():
    lines, en, zh, ring = ranking_fig({'en': ENGLISH, 'zh': CHINESE}, ('b', 3, 9), ('en', 2)).data
    assert en.marker.symbol == ('circle', 'diamond', 'circle') and zh.marker.symbol == ('diamond', 'circle') and (ring.x[0], ring.y[0]) == (0, 3)
    assert len(ranking_fig({'en': ENGLISH, 'zh': CHINESE.iloc[:0]}).data) == 4 # nothing found: still the same traces

def test_shares_and_tables_show_their_numbers():
    assert {b.name: list(b.x) for b in share_fig({'a': (1, 2), 'b': (3, -4)}).data} == {'frames': [1, 3], 'subtitles': [2, -4]}
    table = pd.DataFrame(RNG.normal(size=(3, 4)), list('abc'), list('wxyz'))
    heat = table_fig(table, digits=2).data[0]
    for r in 'abc':
        for c in 'wxyz': assert heat.z[heat.y.index(r), heat.x.index(c)] == table.loc[r, c] and heat.text[heat.y.index(r), heat.x.index(c)] == f'{table.loc[r, c]:.2f}'

WRONG |= {
    'one stream': lambda: moment_curve_fig(CURVES[:1], START, END),
    'probabilities of another video': lambda: moment_curve_fig(CURVES, START[:5], END),
    'subtitles of another video': lambda: moment_curve_fig(CURVES, START, END, texts=['a']),
    'padding among the scores': lambda: moment_curve_fig(np.where(CURVES > 1, np.nan, CURVES), START, END),
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
