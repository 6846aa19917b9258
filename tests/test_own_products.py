"Products on own videos: long ones, later ones, and models that are held against rows."
from dataclasses import replace

import numpy as np
import pytest
from fastcore.test import test_close as close

from helpers import refused
from mcls_nb.core import set_seed
from mcls_nb.finder import finder_of, stitch_moments
from mcls_nb.model_folder import fit_doctor
from mcls_nb.papers.runs import Run
from mcls_nb.papers.systems import load
from mcls_nb.retrieve.encoders import MXML, XMLConfig
from mcls_nb.retrieve.recipes import SearchConfig
from mcls_nb.retrieve.spans import END_RULES, Ranking
from mcls_nb.summarizer import passages, stitch_summaries
from mcls_nb.videos.extractors import HashedText, PixelFeatures
from mcls_nb.videos.ingest import OwnVideos, ingest
from mcls_nb.videos.tables import whole
from mcls_nb.videos.media import Cue
from own_videos import lessons, srt, video

av, pysubs2 = pytest.importorskip('av'), pytest.importorskip('pysubs2') # the extra [media]


# --- stitching, against what is plain

def overlap(a, b):
    "The IoU of two answers (video, start, end, score)."
    common = max(0., min(a[2], b[2]) - max(a[1], b[1]))
    return common / (max(a[2], b[2]) - min(a[1], b[1]))

def naive(answers, threshold):
    "Answers (name, start, end, score) about windows, as answers about whole videos, each once."
    kept = []
    for name, start, end, score in answers:
        video, begin = whole(name)
        answer = video, start + begin, end + begin, score
        if all(o[0] != video or overlap(answer, o) <= threshold for o in kept): kept.append(answer)
    return kept

def answers(ranking, row, names):
    "One row of a ranking as (name, start, end, score)."
    lines = zip(ranking.video[row], ranking.start[row], ranking.end[row], ranking.score[row])
    return [(names[v], *rest) for v, *rest in lines if v >= 0]

def test_stitching_equals_the_naive_way():
    rng = np.random.default_rng(0)
    names = ['a', 'b@0', 'b@12', 'b@24', 'c@0', 'c@12.5', 'a@b']
    q, k = 50, 30
    windows, start = rng.integers(0, len(names), (q, k)), 1.5 * rng.integers(0, 12, (q, k))
    end, score = start + 1.5 * rng.integers(1, 6, (q, k)), -np.sort(-rng.random((q, k)), 1)
    ranking = Ranking(windows, start, end, score)
    for threshold in (0., .3, .5):
        stitched, videos = stitch_moments(ranking, names, threshold)
        for i in range(q):
            due = naive(answers(ranking, i, names), threshold)
            assert answers(stitched, i, videos) == due
            assert np.isnan(stitched.score[i, len(due):]).all()
        assert stitch_moments(ranking, names, threshold, k=3)[0].video.shape == (q, 3)

def test_passages_tile_the_video():
    rng = np.random.default_rng(1)
    for _ in range(50):
        ends = np.cumsum(rng.uniform(.5, 9, 40))
        said = [' '.join(['w'] * rng.integers(1, 12)) for _ in ends]
        cues = [Cue(e - .4, e, text) for e, text in zip(ends.tolist(), said)]
        duration = float(ends[-1] + rng.uniform(0, 5))
        most, longest = int(rng.integers(12, 60)), float(rng.uniform(10, 60))
        found = passages(cues, duration, most, longest)
        assert found[0][0] == 0 and found[-1][1] == duration
        assert all(a[1] == b[0] for a, b in zip(found, found[1:]))
        assert ' '.join(text for *_, text in found) == ' '.join(said)
        assert all(len(text.split()) <= most for *_, text in found)
        for start, end, _ in found:
            inside = [c for c in cues if c.start >= start and (c.start < end or end == duration)]
            assert inside[-1].end - start <= longest or len(inside) == 1
    assert passages([], 5.) == []

def test_a_sentence_is_said_once():
    assert stitch_summaries([]) == '' and stitch_summaries(['a b c .']) == 'a b c .'
    five_of_nine, six_of_eight = 'a b c d e h i .', 'a b c d e f h .' # words of the first one
    texts = ['a b c d e f g .', five_of_nine, f'{six_of_eight} other words ?']
    told = stitch_summaries(texts)
    assert told == f'a b c d e f g . {five_of_nine} other words ?'
    assert stitch_summaries(['a b .', 'a b .'], same=1.1) == 'a b . a b .'


# --- a long video is searched in windows, and explained in the one that an answer comes from

@pytest.fixture(scope='module')
def film(tmp_path_factory):
    "A film in two windows, 0 to 12 s and 9 to 20.2 s, and finders that have learned nothing."
    root = tmp_path_factory.mktemp('film')
    (root/'in').mkdir()
    video(root/'in', 'film.mp4', 20.2, 3)
    said = srt((0., 2., '红球飞了。'), (9.5, 11., '蓝球停了。'), (18., 20., '黄球飞了。'))
    (root/'in'/'film.zh.srt').write_text(said, encoding='utf-8')
    (root/'in'/'film.en.srt').write_text(srt((9.5, 11., 'the blue ball stops')))
    ingest(root/'in', root/'out', workers=1, max_clips=8, overlap=2)
    own = OwnVideos(root/'out')
    corpus = own.moments
    set_seed(0)
    sizes = dict(max_clips=corpus.max_clips, max_words=corpus.max_words)
    network = MXML(XMLConfig(d=16, heads=2, d_video=corpus.d_video, d_text=corpus.d_text, **sizes))
    finders = {}
    for end in END_RULES:
        rule = replace(corpus.rule, end_rule=end)
        finder = finder_of(dict.fromkeys(('en', 'zh'), network), corpus, SearchConfig(rule))
        finders[end] = finder.index(own)
    return own, finders

def seconds(view):
    "(name of the whole video, start, end) of a view's moment."
    name, begin = whole(view.video)
    return name, begin + view.span[0], begin + view.span[1]

@pytest.mark.parametrize('end', END_RULES)
def test_an_answer_about_a_long_video_is_explained_in_its_window(film, end):
    own, finder = film[0], film[1][end]
    assert own.videos['film']['names'] == ['film@0', 'film@9']
    windows = set()
    for text, language in (('蓝球停了', 'zh'), ('the blue ball', 'en')):
        found = finder.search(text, language, k=60, nms=.95)
        assert len(found) > 30
        for a in found.itertuples():
            view = finder.explain(a, lines=own.lines(a.video, language))
            assert seconds(view) == ('film', a.start, a.end)
            close(view.log_score, a.score, 1e-4) # hence the right one of both
            windows.add(view.video)
            lines = own.lines(view.video, language)
            direct = finder.explain(text, view.video, language, view.span, lines)
            assert (direct.texts, direct.parts) == (view.texts, view.parts)
    assert windows == {'film@0', 'film@9'}

def test_seconds_of_a_window_are_told_from_its_beginning(film):
    own, finder = film[0], film[1]['released']
    lines = own.lines('film', 'zh')
    last = finder.explain('黄球', 'film', 'zh', (18., 21.), lines)
    assert (last.video, last.span) == ('film@9', (9., 12.)) # the last clip is not a whole one
    assert last.texts[0] == '蓝球停了。' and last.texts[6] == '黄球飞了。'
    first = finder.explain('黄球', 'film', 'zh', (0., 3.), lines)
    assert (first.video, first.span, first.texts[0]) == ('film@0', (0., 3.), '红球飞了。')

def test_the_best_moment_of_a_long_video_is_that_of_its_best_window(film):
    finder = film[1]['consistent']
    for text, language in (('蓝球停了', 'zh'), ('黄球', 'zh'), ('the blue ball', 'en')):
        best = finder.explain(text, 'film', language)
        top = finder.search(text, language, 1).iloc[0]
        assert seconds(best) == ('film', top.start, top.end)

def test_a_moment_in_no_window_is_refused(film):
    finder = film[1]['consistent']
    for span in ((3., 18.), (18., 24.), (-3., 3.)):
        refused(lambda: finder.explain('黄球', 'film', 'zh', span), 'lies outside of the video')
    refused(lambda: finder.explain('黄球', 'movie', 'zh'), "there is no video 'movie'")


# --- trained on own videos, asked about those and about later ones

@pytest.fixture(scope='module')
def trained(lessons, tmp_path_factory):
    "The videos, a run of each half of the house, and the folder of all runs."
    runs, out = tmp_path_factory.mktemp('runs'), lessons[0]/'out'
    writes = Run('VDF', 'tiny', data=str(out), epochs=2).result(runs)
    finds = Run('mXML', 'tiny', data=str(out), epochs=1).result(runs)
    return OwnVideos(out), writes, finds, runs

@pytest.fixture(scope='module')
def fast(lessons, tmp_path_factory):
    "The same videos with other rows."
    out = tmp_path_factory.mktemp('fast')/'dataset'
    ingest(lessons[0]/'in', out, video=PixelFeatures(fps=10.), text=HashedText(64), workers=1)
    return out

@pytest.mark.slow
def test_all_videos_are_summed_up(trained):
    own, writes, *_ = trained
    assert writes.training.trained.language == writes.product.language == 'zh'
    told = writes.product.summarize_videos(own)
    assert set(told) == set(own.videos) and all(isinstance(t, str) for t in told.values())

@pytest.mark.slow
def test_all_videos_are_searched(trained):
    own, _, finds, _ = trained
    finder = finds.product.index(own)
    assert set(finder.search('红球', k=5).video) <= set(own.videos)
    assert len(finder.search('red ball', 'en', 4)) == 4
    assert len(finder.search('a sentence that nobody knows', 'en', 3)) == 3
    view = finder.explain('红球', 'v8', 'zh', (0., 3.), own.lines('v8', 'zh'))
    assert view.texts[0] == '黄球飞了。'
    finder.index(own, split='test')
    assert set(finder.search('红球', 'zh', 3).video) <= {'v8', 'v9'}

@pytest.mark.slow
def test_later_videos_are_read_by_a_model_that_was_kept(trained, tmp_path):
    _, writes, finds, _ = trained
    (tmp_path/'in').mkdir()
    for k in (0, 3): video(tmp_path/'in', f'new{k}.mp4', 6., k)
    (tmp_path/'in'/'new0.zh.srt').write_text(srt((0., 2., '红球飞了。')), encoding='utf-8')
    (tmp_path/'in'/'new3.en.srt').write_text(srt((0., 2., 'A ball.')))
    ingest(tmp_path/'in', tmp_path/'out', workers=1)
    later = OwnVideos(tmp_path/'out')
    for result in (writes, finds): result.product.save_pretrained(tmp_path/result.run.system)
    summarizer, finder = load(tmp_path/'VDF'), load(tmp_path/'mXML')
    told = summarizer.summarize_videos(later)
    assert set(told) == {'new0'} and told == writes.product.summarize_videos(later)
    found = finder.index(later, path=tmp_path/'index').search('红球')
    assert set(found.video) == {'new0', 'new3'}
    again = load(tmp_path/'mXML').index(path=tmp_path/'index')
    assert again.search('红球').equals(found)
    assert finds.product.index(later).search('红球').equals(found)
    english = lambda: summarizer.summarize_videos(later, ['new3'])
    refused(english, 'there is no transcript of new3 in')

@pytest.mark.slow
def test_a_model_is_held_against_rows(trained, fast, tmp_path):
    own, writes, finds, runs = trained
    for result in (writes, finds): result.product.save_pretrained(tmp_path/result.run.system)
    for model in (writes.folder, runs/'models', tmp_path/'VDF', tmp_path/'mXML'):
        assert fit_doctor(model, own.where) == []
    for model in (writes.folder, tmp_path/'VDF'):
        said = fit_doctor(model, fast)
        assert said and 'extractor is ' in said[0] and 'pixels at 10 frames' in said[0]
        assert 'make them with that extractor' in said[0]
    width = 'width is 768 there and 64 here'
    for model, reads in ((runs/'models', 'subtitles zh'), (tmp_path/'mXML', 'subtitles')):
        said = fit_doctor(model, fast)
        assert any(f'reads other {reads} rows' in s and width in s for s in said)
    (tmp_path/'nothing').mkdir()
    refused(lambda: fit_doctor(tmp_path/'nothing', own.where), 'holds no checkpoint')
    refused(lambda: fit_doctor(writes.folder, tmp_path/'nothing'), 'holds no feature store')

@pytest.mark.slow
def test_a_model_refuses_other_rows(trained, fast):
    _, writes, finds, _ = trained
    other = OwnVideos(fast)
    other_rows = 'has other rows than the system was trained on'
    refused(lambda: writes.product.summarize_videos(other), other_rows)
    refused(lambda: finds.product.index(other), 'a word has 64 numbers, but the model reads 768')
