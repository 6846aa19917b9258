"A folder of one's own videos: what can be used is used, the rest is told, nothing is done twice, and both halves can read the result."
import errno, json, signal, subprocess, sys, time, wave
from pathlib import Path

import numpy as np
import pytest

from helpers import refused
from mcls_nb.videos import ingest as own
from mcls_nb.videos.extractors import HashedText, PixelFeatures, extract_video, subtitle_rows
from mcls_nb.features import HOW2_ACTION, FeatureStore
from mcls_nb.videos.media import Cue, read_transcript, write_video
from mcls_nb.videos.ingest import Finder, OwnVideos, doctor, ingest, passages, stitch_moments, stitch_summaries, sum_up, whole, windows
from mcls_nb.retrieve.data import MomentData, VideoSet, load_mtvr
from mcls_nb.retrieve.spans import Ranking
from mcls_nb.summarize.data import load_how2

av, pysubs2 = pytest.importorskip('av'), pytest.importorskip('pysubs2') # the extra [media]


def pictures(seed, seconds, fps=5, h=48, w=64):
    "A square that walks over a ground; both depend on the seed."
    rng = np.random.default_rng(seed)
    ground, colour = rng.integers(20, 90, 3), rng.integers(130, 255, 3)
    for k in range(round(seconds * fps)):
        x = np.full((h, w, 3), ground, np.uint8)
        x[12:30, (2 * k) % (w - 16):(2 * k) % (w - 16) + 16] = colour
        yield x

def video(folder, name, seconds=6., seed=0): return write_video(folder/name, pictures(seed, seconds), fps=5)

def clock(t): return f'{int(t) // 3600:02}:{int(t) // 60 % 60:02}:{t % 60:06.3f}'.replace('.', ',')

def srt(*cues): return '\n'.join(f'{k}\n{clock(a)} --> {clock(b)}\n{text}\n' for k, (a, b, text) in enumerate(cues, 1))

def outcome(report, item): return next((f'{r.outcome}: {r.about}' for r in report.itertuples() if r.item == item), None)

def content(folder): return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


# --- bad input: one folder with everything that can be wrong

def sound(path):
    with wave.open(str(path), 'wb') as w:
        w.setnchannels(1), w.setsampwidth(2), w.setframerate(8000)
        w.writeframes(bytes(16000))

QUERIES = [ # line, what is wrong with it
    ('video;start;end;type;en;zh', None), ('good;0;3;v;a red square;一个方块', None), ('good.mp4;0:01;0:05;vt;it walks;它走', None),
    ('goof;0;3;v;x;方', "there is no video 'goof' that could be used; did you mean good?"), ('broken;0;3;v;x;方', "there is no video 'broken'"),
    ('good;0;60;v;x;方', 'the moment ends at 60 s, but good lasts 6.0 s'), ('good;nan;3;v;x;方', "'nan' is no time"), ('good;0;;v;x;方', "'' is no time"),
    ('good;4;2;v;x;方', 'before or where it starts'), ('good;-1;2;v;x;方', 'is impossible'), ('good;0;3;z;x;方', "there is no type 'z'"),
    ('good;0;3;v;x;', 'there is no text in zh'), ('good;0;3;v;?!;方', 'there is no word in en'), ('good', "'' is no time"), ('mute;0;3;;silent;默', None)]

@pytest.fixture(scope='module')
def mess(tmp_path_factory):
    "The folder, and what ingest says of it."
    root = tmp_path_factory.mktemp('mess')
    f = root/'in'
    f.mkdir()
    for k, name in enumerate(('good', 'mute', 'late', 'utf16', 'twice', 'no.times', 'empty_summary', 'Ação')): video(f, f'{name}.mp4', seed=k)
    cues = (0., 2.5, 'A square walks.'), (3., 5.5, 'It goes on.')
    for name in ('good', 'late', 'twice', 'empty_summary', 'lonely'): (f/f'{name}.en.srt').write_text(srt(*cues))
    for name in ('good', 'utf16', 'Ação'): (f/f'{name}.zh.srt').write_bytes(srt((0., 2.5, '方块走了。')).encode('utf-16' if name == 'utf16' else 'utf-8'))
    for name in ('good', 'utf16', 'lonely'): (f/f'{name}.summary.txt').write_text('A square walks on.')
    (f/'no.times.zh.txt').write_text('方块走了\n又走了', encoding='utf-8')
    (f/'late.en.srt').write_text(srt(*cues, (60., 62., 'Credits.')))
    (f/'broken.mp4').write_bytes(np.random.default_rng(0).bytes(5000))
    (f/'broken.en.srt').write_text(srt(*cues))
    (f/'empty.mp4').touch()
    whole_file = (f/'good.mp4').read_bytes()
    (f/'cut.mp4').write_bytes(whole_file[:300]) # ends within its index
    (f/'text.mkv').write_text('plain text\n' * 50)
    sound(f/'audio.wav'), sound(f/'audio.mp4')
    (f/'twice.avi').write_bytes(whole_file)
    (f/'twice.en.vtt').write_text('WEBVTT\n\n00:00.000 --> 00:02.000\na\n')
    (f/'good.de.srt').touch()
    (f/'good.fr.txt').write_bytes(whole_file) # a video under a wrong name
    (f/'mute.srt').write_text(srt(*cues))
    (f/'mute@12.mp4').write_bytes(whole_file)
    (f/'empty_summary.summary.txt').write_text('\n')
    (f/'picture.jpg').write_bytes(b'\xff\xd8')
    (f/'queries.csv').write_text('\ufeff' + '\n'.join(l for l, _ in QUERIES) + '\n', encoding='utf-8')
    (f/'queries.jsonl').write_text('{"video": "late", "start": 0, "end": 3, "en": "walks", "zh": "走"}\n{oops\n[1]\n', encoding='utf-8')
    (f/'splits.csv').write_text('video,split\ngood,train\nmute,train\nlate,test\nutf16,dev\nnobody,train\ngood,test\nAção,train\n', encoding='utf-8')
    return f, root/'out', ingest(f, root/'out', workers=1)

@pytest.mark.parametrize('item, words', [
    ('broken.mp4', 'left out: is not a video, or is damaged'), ('empty.mp4', 'left out: is empty'), ('cut.mp4', 'left out: holds no pictures, or ends before its index'),
    ('text.mkv', 'left out: is not a video'), ('audio.mp4', 'left out: holds sound, but no pictures'), ('audio.wav', 'left out: is neither a video'),
    ('twice.mp4', 'left out: twice.avi was taken for this video'), ('twice.en.vtt', 'left out: twice.en.srt was taken for this transcript'),
    ('lonely.en.srt', 'left out: there is no video lonely'), ('lonely.summary.txt', 'left out: there is no video lonely'), ('good.de.srt', 'left out: is empty'),
    ('good.fr.txt', 'left out: is not text'), ('mute.srt', 'left out: does not say its language'), ('mute@12.mp4', 'left out: ends like a window'),
    ('empty_summary.summary.txt', 'left out: holds no cue'), ('picture.jpg', 'left out: is neither a video'), ('no.times.zh.txt', 'in part: has no times'),
    ('mute.mp4', 'made: 6.0 s, no transcript, train'), ('late.mp4', 'in part: 6.0 s, transcripts in en, test; 1 of 3 cues begin after the end of the video'),
    ('utf16.mp4', 'made: 6.0 s, transcripts in zh, summary'), ('good.mp4', 'made: 6.0 s, transcripts in en, zh, summary, train'), ('Ação.mp4', 'made: 6.0 s, transcripts in zh, train'),
    ('splits.csv, line 5', "left out: there is no split 'dev'"), ('splits.csv, line 6', "left out: there is no video 'nobody'"),
    ('splits.csv, line 7', 'left out: good was put into a split before'), ('queries.jsonl, line 2', 'left out: is not JSON'), ('queries.jsonl, line 3', 'left out: is not JSON'),
    *[(f'queries.csv, line {n}', f'left out: {why}') for n, (_, why) in enumerate(QUERIES, 1) if why]])
def test_every_fault_is_told(mess, item, words):
    said = outcome(mess[2], item)
    assert said and words.removeprefix('left out: ') in said and said.split(':')[0] == words.split(':')[0], said
    assert '\n' not in said

def test_good_files_are_used_beside_bad_ones(mess):
    f, out, report = mess
    moments, store = load_mtvr(out), FeatureStore(out/'video_action_features')
    names = {'good', 'mute', 'late', 'utf16', 'twice', 'no.times', 'empty_summary', 'Ação'}
    assert set(store) == {v for d in moments.durations.values() for v in d} == names
    assert [q.texts['en'] for q in moments.splits['train']] == ['a red square', 'it walks', 'silent'] and [q.video for q in moments.splits['test']] == ['late']
    store.verify()
    np.testing.assert_array_equal(store['good'], extract_video(f/'good.mp4', PixelFeatures()))
    cues = read_transcript(f/'good.zh.srt')
    np.testing.assert_array_equal(moments.subtitles['zh']['good'], subtitle_rows(cues, HashedText(), 4))
    assert not moments.subtitles['zh']['mute'].any() and moments.subtitles['zh']['mute'].shape == (4, 768) # silence
    assert len(report) == len(report.drop_duplicates(['item', 'about'])) and (out/'report.csv').read_text('utf-8').count('\n') == len(report) + 1

def test_tables_that_cannot_be_read(tmp_path):
    video(tmp_path, 'a.mp4'), video(tmp_path, 'b.mp4')
    for data, words in ((b'', 'is empty'), (b'video,en\na,x\n', 'has no column start, end'), ('video,start,end,pt\na,0,1,ação\n'.encode('latin-1'), 'is not UTF-8')):
        (tmp_path/'queries.csv').write_bytes(data)
        assert words in outcome(ingest(tmp_path, tmp_path/'out', workers=1), 'queries.csv')
    assert load_mtvr(tmp_path/'out').splits == {}

@pytest.mark.parametrize('how, words', [
    (dict(overlap=100), ['windows of 100 clips cannot share 100']), (dict(overlap=-1), ['cannot share -1']), (dict(piece=30), ['30 rows make no piece']),
    (dict(text=HashedText(seconds=2.)), ['rows cover 2.0 s, those of videos 1.5 s'])])
def test_questions_without_sense(tmp_path, how, words):
    video(tmp_path, 'a.mp4')
    refused(lambda: ingest(tmp_path, tmp_path/'out', workers=1, **how), *words)

def test_folders_that_are_none(tmp_path, monkeypatch):
    refused(lambda: ingest(tmp_path/'none', tmp_path/'out'), 'there is no such folder')
    refused(lambda: ingest(tmp_path, tmp_path/'out'), 'holds no video')
    (tmp_path/'a.mp4').write_bytes(b'x')
    refused(lambda: ingest(tmp_path/'a.mp4', tmp_path/'out'), 'there is no such folder')
    refused(lambda: ingest(tmp_path, tmp_path/'out', workers=1), 'holds no video that can be used, e.g. a.mp4 is not a video')
    (tmp_path/'out').mkdir()
    (tmp_path/'out'/'thesis.tex').touch()
    refused(lambda: ingest(tmp_path, tmp_path/'out'), "holds ['thesis.tex'], which was not made here")
    refused(lambda: OwnVideos(tmp_path/'out'), 'is no dataset of own videos')
    def denied(self): raise PermissionError(errno.EACCES, 'Permission denied', str(self))
    monkeypatch.setattr(Path, 'iterdir', denied)
    refused(lambda: ingest(tmp_path, tmp_path/'new'), 'cannot be read (Permission denied)')

def test_nobody_elses_folder_is_replaced(tmp_path):
    "Names that are ours prove nothing: released corpora have the same."
    video(tmp_path, 'a.mp4')
    names = ('tvr_zh_en_train_release.jsonl', 'train_sum.txt', 'train_notes.txt',
             'video_action_features/a.npy')
    for k, name in enumerate(names):
        mine = tmp_path/str(k)/name
        mine.parent.mkdir(parents=True)
        mine.write_text('mine')
        refused(lambda: ingest(tmp_path, tmp_path/str(k), workers=1), f"holds ['{name}'], which",
                'exists and is not a dataset with the mark of mcls_nb', 'choose a new folder')
        assert content(tmp_path/str(k)) == {name: b'mine'}

def test_a_dataset_is_replaced_if_it_is_ours_alone(tmp_path):
    video(tmp_path, 'a.mp4')
    out = tmp_path/'out'
    again = lambda: content(out) if len(ingest(tmp_path, out, workers=1)) else None
    made = again()
    listed = json.loads(made['mcls_nb.json'])['files']
    assert made == again() and listed == sorted(made.keys() - {'mcls_nb.json'})
    for name in ('train_notes.txt', 'video_action_features/b.npy', 'runs/rows.csv'):
        (out/name).parent.mkdir(exist_ok=True)
        (out/name).write_text('mine')
        refused(again, f"holds ['{name}'], which was not made here", 'choose a new folder')
        assert content(out) == made | {name: b'mine'}
        (out/name).unlink()
    (out/'mcls_nb.json').unlink() # as older versions made it
    assert len(OwnVideos(out)) == 1
    refused(again, 'is not a dataset with the mark of mcls_nb', 'delete this one yourself')
    assert content(out) == {k: v for k, v in made.items() if k != 'mcls_nb.json'}

def test_rows_that_do_not_cover_seconds(tmp_path):
    video(tmp_path, 'a.mp4')
    class Frames(PixelFeatures): contract = property(lambda self: HOW2_ACTION, lambda self, c: None)
    refused(lambda: ingest(tmp_path, tmp_path/'out', video=Frames()), 'a row covers 16 frames')

def test_a_full_disk(tmp_path, monkeypatch):
    f = tmp_path/'in'
    f.mkdir()
    for k in range(3): video(f, f'v{k}.mp4', seed=k)
    save, left = np.savez, [1]
    def savez(*args, **more):
        if not left: raise OSError(errno.ENOSPC, 'No space left on device')
        left.pop()
        save(*args, **more)
    with monkeypatch.context() as m:
        m.setattr(np, 'savez', savez)
        refused(lambda: ingest(f, tmp_path/'out', workers=1), 'cannot be written (No space left on device)', 'make room there')
    assert not (tmp_path/'out').exists() and len(list((tmp_path/'out.work').glob('*.npz'))) == 1
    assert set(ingest(f, tmp_path/'out', workers=1).outcome) == {'made', 'left out'} # the summaries are left out, since there are none

def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    video(tmp_path, 'a.mp4'), video(tmp_path, 'b.mp4')
    (tmp_path/'b.en.srt').write_text(srt((0., 1., 'x')))
    for name in ('probe', 'read_transcript'): # who runs tests as root may read everything
        def read(path, real=getattr(own, name)):
            if Path(path).name in ('a.mp4', 'b.en.srt'): raise PermissionError(errno.EACCES, 'Permission denied', str(path))
            return real(path)
        monkeypatch.setattr(own, name, read)
    report = ingest(tmp_path, tmp_path/'out', workers=1)
    for item in ('a.mp4', 'b.en.srt'): assert outcome(report, item).startswith('left out: cannot be read (') and 'Permission denied' in outcome(report, item)
    assert outcome(report, 'b.mp4').startswith('made')


# --- nothing is done twice

KILLED = '''
import sys, time
from mcls_nb.videos.extractors import PixelFeatures
from mcls_nb.videos.ingest import ingest
class Slow(PixelFeatures):
    def extract(self, frames):
        time.sleep(.15)
        return super().extract(frames)
ingest(sys.argv[1], sys.argv[2], video=Slow(), workers=1, piece=20)
'''

class Counting(PixelFeatures):
    def __init__(self):
        super().__init__()
        self.calls = 0
    def extract(self, frames):
        self.calls += 1
        return super().extract(frames)

def test_a_killed_call_goes_on(tmp_path):
    f, out = tmp_path/'in', tmp_path/'out'
    f.mkdir()
    for k, seconds in enumerate((5., 100., 100., 65.)): video(f, f'v{k}.mp4', seconds, k) # 1, 4, 4 and 3 pieces of 30 s
    (f/'v1.en.srt').write_text(srt(*[(t, t + 2., f'word{t}') for t in range(0, 96, 3)]))
    finished = lambda: len(list((tmp_path/'out.work').glob('*.npz')))
    process = subprocess.Popen([sys.executable, '-c', KILLED, f, out], stderr=subprocess.DEVNULL)
    begin = time.monotonic()
    while finished() < 3 and process.poll() is None and time.monotonic() - begin < 60: time.sleep(.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = finished()
    assert 3 <= done < 12 and not out.exists()
    (tmp_path/'out.work'/'.x.npz.99.tmp').touch() # what was being written
    counting = Counting()
    report = ingest(f, out, video=counting, workers=1, piece=20)
    assert counting.calls == 12 - done and not list((tmp_path/'out.work').glob('.*.tmp'))
    again = tmp_path/'again'
    assert ingest(f, again, workers=2, piece=20).equals(report) and content(again) == content(out) # by several processes, without a pause
    in_one = tmp_path/'in_one'
    ingest(f, in_one, workers=1)
    assert content(in_one) == content(out) # and in one piece
    counting.calls = 0
    video(f, 'v0.mp4', 6., 9)
    (f/'v1.en.srt').write_text(srt((0., 2., 'new')))
    ingest(f, out, video=counting, workers=1, piece=20)
    assert counting.calls == 1 # only what was replaced; subtitles do not touch pictures

@pytest.mark.parametrize('kind', ['mkv', 'webm'])
def test_pieces_equal_one_pass(tmp_path, kind):
    video(tmp_path, f'a.{kind}', 70.)
    for name, piece in (('whole', 400), ('pieces', 20)): ingest(tmp_path, tmp_path/name, workers=1, piece=piece)
    assert len(list((tmp_path/'pieces.work').glob('*.npz'))) == 3 and content(tmp_path/'pieces') == content(tmp_path/'whole')

def test_a_damaged_end_keeps_its_place(tmp_path):
    f = tmp_path/'in'
    f.mkdir()
    whole_file = video(f, 'a.mp4', 100.).read_bytes()
    (f/'b.mp4').write_bytes(whole_file[:int(len(whole_file) * .7)])
    report = ingest(f, tmp_path/'out', workers=1, piece=20)
    assert 'in part' in outcome(report, 'b.mp4') and 'pictures end at' in outcome(report, 'b.mp4')
    rows = FeatureStore(tmp_path/'out'/'video_action_features')
    n = len(rows['b'])
    assert 20 < n < 66
    np.testing.assert_array_equal(rows['b'][:n - 1], rows['a'][:n - 1])
    assert OwnVideos(tmp_path/'out').videos['b']['duration'] <= n * 1.5


# --- windows and stitching, against what is plain

@pytest.mark.parametrize('n', [1, 9, 10, 11, 16, 17, 22, 23, 100])
def test_windows_hold_everything(n):
    found = windows(n, 10, 4)
    assert found[0][0] == 0 and found[-1][1] == n and all(b - a <= 10 for a, b in found)
    assert all(c == a + 6 and b - c == 4 for (a, b), (c, _) in zip(found, found[1:])) and all(b - a > 4 for a, b in found[1:])
    for st in range(n):
        for ed in range(st + 1, min(st + 4, n) + 1): assert any(a <= st and ed <= b for a, b in found)

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

@pytest.fixture(scope='module')
def film(tmp_path_factory):
    "A film of windows of 10 clips that share 4, with queries here and there."
    root = tmp_path_factory.mktemp('film')
    f = root/'in'
    f.mkdir()
    video(f, 'film.mp4', 60.), video(f, 'short.mp4', 8., 1), video(f, 'other.mp4', 9., 2)
    (f/'film.zh.srt').write_text(srt(*[(t, t + 2., f'第{t}秒') for t in range(0, 58, 4)]), encoding='utf-8')
    (f/'queries.csv').write_text('video,start,end,zh\n' + ''.join(f'film,{s},{e},方块\n' for s, e in ((0, 3), (13, 16), (8, 14), (55, 60), (5, 45), (59, 61))) + 'short,0,3,方\nother,0,3,块\n', encoding='utf-8')
    (f/'splits.csv').write_text('video,split\nfilm,train\nshort,train\nother,test\n')
    return f, root/'out', ingest(f, root/'out', max_clips=10, overlap=4, workers=1)

def test_a_long_video_in_windows(film):
    f, out, report = film
    c, rows = load_mtvr(out), extract_video(f/'film.mp4', PixelFeatures())
    heard = subtitle_rows(read_transcript(f/'film.zh.srt'), HashedText(), len(rows))
    assert c.languages == ('zh',) and [n for n in c.durations['train'] if n != 'short'] == [f'film@{t}' for t in (0, 9, 18, 27, 36, 45)]
    for name, seconds in c.durations['train'].items():
        if name == 'short': continue
        a = int(whole(name)[1] / 1.5)
        np.testing.assert_array_equal(c.video[name], rows[a:a + 10])
        np.testing.assert_array_equal(c.subtitles['zh'][name], heard[a:a + 10])
        assert seconds == min(15., 60. - a * 1.5)
    assert [(q.video, q.moment) for q in c.splits['train']] == [('film@0', (0., 3.)), ('film@9', (4., 7.)), ('film@0', (8., 14.)), ('film@45', (10., 15.)), ('film@18', (0., 15.)), ('film@45', (14., 15.)), ('short', (0., 3.))]
    assert 'was cut to 18 to 33 s' in outcome(report, 'queries.csv, line 6')
    MomentData(c).collate([0, 1]), VideoSet(c, 'train').lengths
    o = OwnVideos(out)
    assert o.lines('film@9', 'zh')[:2] == [(-1., 1., '第8秒'), (3., 5., '第12秒')] and o.lines('short', 'zh') == []
    np.testing.assert_array_equal(o.picture('film@9', 3.), o.picture('film', 12.))
    refused(lambda: o.picture('flim', 1.), "there is no video 'flim'")


# --- both halves read it

@pytest.fixture(scope='module')
def lessons(tmp_path_factory):
    "Ten small videos in Chinese, one of them long, with summaries and queries."
    root = tmp_path_factory.mktemp('lessons')
    f = root/'in'
    f.mkdir()
    things = [('红', 'red'), ('蓝', 'blue'), ('绿', 'green'), ('黄', 'yellow'), ('黑', 'black')]
    for k in range(10):
        (zh, en), name = things[k % 5], f'v{k}'
        video(f, f'{name}.mp4', 6., k)
        (f/f'{name}.zh.srt').write_text(srt((0., 2., f'{zh}球飞了。'), (3., 5., f'{zh}球停了。')), encoding='utf-8')
        (f/f'{name}.summary.txt').write_text(f'A {en} ball flies.')
    (f/'queries.csv').write_text('video,start,end,type,zh,en\n' + ''.join(f'v{k},0,2,vt,{things[k % 5][0]}球飞,{things[k % 5][1]} flies\n' for k in range(10)), encoding='utf-8')
    (f/'splits.csv').write_text('video,split\n' + ''.join(f'v{k},{"test" if k > 7 else "train"}\n' for k in range(10)))
    return root, ingest(f, root/'out', workers=1)

def test_both_layouts_in_the_language_that_is_there(lessons):
    c = load_how2(lessons[0]/'out')
    assert {s: len(r) for s, r in c.splits.items()} == {'train': 8, 'test': 2} and set(c.splits['train'][0].transcripts) == {'zh'}
    assert c.splits['test'][0].transcripts['zh'] == '黄 球 飞 了 。 黄 球 停 了 。'
    assert outcome(lessons[1], 'summaries') == 'made: 8 train (zh), 2 test (zh)' and 'made: 8 train' in outcome(lessons[1], 'moments')

def test_english_alone_is_for_pretraining(tmp_path):
    for k in range(4):
        video(tmp_path, f'v{k}.mp4', 3., k)
        for language in ('en',) if k == 3 else ('en', 'pt') if k else ('pt',): (tmp_path/f'v{k}.{language}.srt').write_text(srt((0., 2., f'words {language}')))
        (tmp_path/f'v{k}.summary.txt').write_text('Words.')
    (tmp_path/'splits.csv').write_text('video,split\nv0,train\nv1,train\nv2,test\nv3,test\n')
    ingest(tmp_path, tmp_path/'out', workers=1)
    splits = load_how2(tmp_path/'out').splits
    assert {s: [r.id for r in rs] for s, rs in splits.items()} == {'pretrain': ['v3'], 'train': ['v0', 'v1'], 'test': ['v2']}
    assert {s: set(rs[0].transcripts) for s, rs in splits.items()} == {'pretrain': {'en'}, 'train': {'pt'}, 'test': {'en', 'pt'}} # what all of a split have

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
    how = dict(alpha=explorer.alpha, merge=explorer.merge)
    find = Finder(explorer.models, o, **how)
    assert set(find('红球', 'zh', 5).video) <= set(o.videos) and len(find('red ball', 'en', 4)) == 4
    (tmp_path/'more').mkdir() # videos that came later, without queries
    for k in (0, 3): video(tmp_path/'more', f'new{k}.mp4', 6., k)
    (tmp_path/'more'/'new0.zh.srt').write_text(srt((0., 2., '红球飞了。')), encoding='utf-8')
    (tmp_path/'more'/'new3.en.srt').write_text(srt((0., 2., 'A ball.')))
    ingest(tmp_path/'more', tmp_path/'dataset', workers=1)
    later = OwnVideos(tmp_path/'dataset')
    assert set(Finder(explorer.models, later, **how)('红球', 'zh').video) == {'new0', 'new3'} and set(sum_up(result.setup, later)) == {'new0'}
    for folder in (result.folder, tmp_path/'runs'/'models'): assert doctor(folder, out) == []
    ingest(root/'in', tmp_path/'fast', video=PixelFeatures(fps=10.), text=HashedText(64), workers=1)
    said = doctor(result.folder, tmp_path/'fast')
    assert said and 'extractor is ' in said[0] and 'pixels at 10 frames' in said[0] and 'make them with that extractor' in said[0]
    assert any('reads other subtitles zh rows' in s and 'width is 768 there and 64 here' in s for s in doctor(tmp_path/'runs'/'models', tmp_path/'fast'))
    refused(lambda: sum_up(result.setup, OwnVideos(tmp_path/'fast')), 'has other rows than the system was trained on')
    refused(lambda: Finder(explorer.models, OwnVideos(tmp_path/'fast'), **how), 'a word has 64 numbers, but the model reads 768')
    refused(lambda: doctor(tmp_path/'more', out), 'holds no checkpoint')
    refused(lambda: doctor(result.folder, tmp_path/'more'), 'holds no feature store')

@pytest.mark.slow
def test_english_alone_is_summarised_too(tmp_path):
    from mcls_nb.summarize import rows as summaries
    for k in range(3):
        video(tmp_path, f'v{k}.mp4', 3., k)
        (tmp_path/f'v{k}.en.srt').write_text(srt((0., 2., f'ball number {k}')))
        (tmp_path/f'v{k}.summary.txt').write_text('A ball.')
    ingest(tmp_path, tmp_path/'out', workers=1)
    setup = summaries.run_job(summaries.SummaryJob('VDF', 'tiny', data=str(tmp_path/'out'), smoke=True), tmp_path/'runs').setup
    assert setup.data['train'].languages[0] == 'en'
