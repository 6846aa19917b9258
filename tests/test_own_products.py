"Products on own videos: answers about windows become answers about videos, long videos are summed up, models are held against rows."
import numpy as np
import pytest

from helpers import refused
from mcls_nb.finder import MomentFinder, stitch_moments
from mcls_nb.model_folder import contract_differences, fit_doctor
from mcls_nb.retrieve.spans import Ranking
from mcls_nb.summarizer import VideoSummarizer, passages, stitch_summaries
from mcls_nb.videos.extractors import HashedText, PixelFeatures
from mcls_nb.videos.ingest import OwnVideos, ingest, whole
from mcls_nb.videos.media import Cue
from own_videos import lessons, srt, video

av, pysubs2 = pytest.importorskip('av'), pytest.importorskip('pysubs2') # the extra [media]


# --- stitching, against what is plain

def naive(answers, names, threshold):
    "Answers (name, start, end, score) of whole videos, each once."
    kept = []
    for name, s, e, x in answers:
        video, begin = whole(name)
        s, e = s + begin, e + begin
        iou = lambda o: max(0., min(e, o[2]) - max(s, o[1])) / (max(e, o[2]) - min(s, o[1]))
        if all(o[0] != video or iou(o) <= threshold for o in kept): kept.append((video, s, e, x))
    return kept

def test_stitching_equals_the_naive_way():
    rng, names = np.random.default_rng(0), ['a', 'b@0', 'b@12', 'b@24', 'c@0', 'c@12.5', 'a@b']
    q, k = 50, 30
    video, start = rng.integers(0, len(names), (q, k)), 1.5 * rng.integers(0, 12, (q, k))
    r = Ranking(video, start, start + 1.5 * rng.integers(1, 6, (q, k)), -np.sort(-rng.random((q, k)), 1))
    for threshold in (0., .3, .5):
        found, videos = stitch_moments(r, names, threshold)
        for i in range(q):
            due = naive([(names[v], *rest) for v, *rest in zip(r.video[i], r.start[i], r.end[i], r.score[i])], names, threshold)
            got = [(videos[v], s, e, x) for v, s, e, x in zip(found.video[i], found.start[i], found.end[i], found.score[i]) if v >= 0]
            assert got == due and np.isnan(found.score[i, len(due):]).all()
        assert stitch_moments(r, names, threshold, k=3)[0].video.shape == (q, 3)

def test_passages_tile_the_video():
    rng = np.random.default_rng(1)
    for _ in range(50):
        ends = np.cumsum(rng.uniform(.5, 9, 40))
        cues = [Cue(e - .4, e, ' '.join(['w'] * rng.integers(1, 12))) for e in ends.tolist()]
        duration, most, longest = float(ends[-1] + rng.uniform(0, 5)), int(rng.integers(12, 60)), float(rng.uniform(10, 60))
        found = passages(cues, duration, most, longest)
        assert found[0][0] == 0 and found[-1][1] == duration and all(a[1] == b[0] for a, b in zip(found, found[1:]))
        assert ' '.join(t for *_, t in found) == ' '.join(c.text for c in cues) and all(len(t.split()) <= most for *_, t in found)
        spoken = [[c for c in cues if a <= c.start < b or b == duration and c.start >= a] for a, b, _ in found]
        assert all(s[-1].end - a <= longest or len(s) == 1 for s, (a, *_) in zip(spoken, found))
    assert passages([], 5.) == []

def test_a_sentence_is_said_once():
    assert stitch_summaries([]) == '' and stitch_summaries(['a b c .']) == 'a b c .'
    assert stitch_summaries(['a b c d e f g .', 'a b c d e h i .', 'a b c d e f h . other words ?']) == 'a b c d e f g . a b c d e h i . other words ?' # 5 of 9, 6 of 8
    assert stitch_summaries(['a b .', 'a b .'], same=1.1) == 'a b . a b .'

@pytest.mark.slow
def test_train_summarise_search_and_diagnose(lessons, tmp_path):
    from mcls_nb.explain import open_moments, open_summaries
    from mcls_nb.summarize import rows as summaries
    root, out = lessons[0], lessons[0]/'out'
    job = summaries.SummaryJob('VDF', 'tiny', data=str(out), epochs=2)
    result = summaries.run_job(job, tmp_path/'runs')
    assert result.setup.data['train'].languages[0] == 'zh'
    o = OwnVideos(out)
    told = sum_up(result.setup, o)
    assert set(told) == set(o.videos) and all(isinstance(t, str) for t in told.values())
    explorer = open_moments(('mXML',), data=str(out), out=tmp_path/'runs', epochs=1, lines=o.lines)['mXML']
    assert len(explorer.search('红球', 'zh', 3)) == 3 and len(explorer.search('a sentence that nobody knows', 'en', 3)) == 3
    view = explorer.view('红球', 'zh', 'v8', (0., 3.))
    assert view.texts[0] == '黄球飞了。'
    find = Finder(explorer.models, o)
    assert set(find('红球', 'zh', 5).video) <= set(o.videos) and len(find('red ball', 'en', 4)) == 4
    (tmp_path/'more').mkdir() # videos that came later, without queries
    for k in (0, 3): video(tmp_path/'more', f'new{k}.mp4', 6., k)
    (tmp_path/'more'/'new0.zh.srt').write_text(srt((0., 2., '红球飞了。')), encoding='utf-8')
    (tmp_path/'more'/'new3.en.srt').write_text(srt((0., 2., 'A ball.')))
    ingest(tmp_path/'more', tmp_path/'dataset', workers=1)
    later = OwnVideos(tmp_path/'dataset')
    assert set(Finder(explorer.models, later)('红球', 'zh').video) == {'new0', 'new3'} and set(sum_up(result.setup, later)) == {'new0'}
    for folder in (result.folder, tmp_path/'runs'/'models'): assert doctor(folder, out) == []
    ingest(root/'in', tmp_path/'fast', video=PixelFeatures(fps=10.), text=HashedText(64), workers=1)
    said = doctor(result.folder, tmp_path/'fast')
    assert said and 'extractor is ' in said[0] and 'pixels at 10 frames' in said[0] and 'make them with that extractor' in said[0]
    assert any('reads other subtitles zh rows' in s and 'width is 768 there and 64 here' in s for s in doctor(tmp_path/'runs'/'models', tmp_path/'fast'))
    refused(lambda: sum_up(result.setup, OwnVideos(tmp_path/'fast')), 'has other rows than the system was trained on')
    refused(lambda: Finder(explorer.models, OwnVideos(tmp_path/'fast')), 'a word has 64 numbers, but the model reads 768')
    refused(lambda: doctor(tmp_path/'more', out), 'holds no checkpoint')
    refused(lambda: doctor(result.folder, tmp_path/'more'), 'holds no feature store')
