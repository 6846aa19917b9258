"A folder of one's own videos: what can be used is used, the rest is told, nothing is done twice."
import errno, json, signal, subprocess, sys, time, wave
from pathlib import Path

import numpy as np
import pytest

from helpers import refused
from mcls_nb.features import HOW2_ACTION, FeatureStore
from mcls_nb.retrieve.data import MomentData, VideoSet
from mcls_nb.retrieve.mtvr import load_mtvr
from mcls_nb.summarize.data import load_how2
from mcls_nb.videos import ingest as ingesting, pieces
from mcls_nb.videos.extractors import HashedText, PixelFeatures, extract_video, subtitle_rows
from mcls_nb.videos.ingest import OwnVideos, cut_windows, ingest
from mcls_nb.videos.tables import whole
from mcls_nb.videos.media import read_transcript
from own_videos import Counting, content, lessons, outcome, srt, video # lessons is a fixture

av, pysubs2 = pytest.importorskip('av'), pytest.importorskip('pysubs2') # the extra [media]


# --- bad input: one folder with everything that can be wrong

def sound(path):
    with wave.open(str(path), 'wb') as w:
        w.setnchannels(1), w.setsampwidth(2), w.setframerate(8000)
        w.writeframes(bytes(16000))

QUERIES = [ # line, what is wrong with it
    ('video;start;end;type;en;zh', None),
    ('good;0;3;v;a red square;一个方块', None),
    ('good.mp4;0:01;0:05;vt;it walks;它走', None),
    ('goof;0;3;v;x;方', "there is no video 'goof' that could be used; did you mean good?"),
    ('broken;0;3;v;x;方', "there is no video 'broken'"),
    ('good;0;60;v;x;方', 'the moment ends at 60 s, but good lasts 6.0 s'),
    ('good;nan;3;v;x;方', "'nan' is no time"),
    ('good;0;;v;x;方', "'' is no time"),
    ('good;4;2;v;x;方', 'before or where it starts'),
    ('good;-1;2;v;x;方', 'is impossible'),
    ('good;0;3;z;x;方', "there is no type 'z'"),
    ('good;0;3;v;x;', 'there is no text in zh'),
    ('good;0;3;v;?!;方', 'there is no word in en'),
    ('good', "'' is no time"),
    ('mute;0;3;;silent;默', None)]

SPLITS = 'good,train mute,train late,test utf16,dev nobody,train good,test Ação,train'.split()

NAMES = 'good mute late utf16 twice no.times empty_summary Ação'.split()

def bring_good_files(f):
    for k, name in enumerate(NAMES): video(f, f'{name}.mp4', seed=k)
    cues = (0., 2.5, 'A square walks.'), (3., 5.5, 'It goes on.')
    for name in ('good', 'twice', 'empty_summary', 'lonely', 'broken'):
        (f/f'{name}.en.srt').write_text(srt(*cues))
    (f/'late.en.srt').write_text(srt(*cues, (60., 62., 'Credits.')))
    (f/'mute.srt').write_text(srt(*cues))
    for name in ('good', 'utf16', 'Ação'):
        encoding = 'utf-16' if name == 'utf16' else 'utf-8'
        (f/f'{name}.zh.srt').write_bytes(srt((0., 2.5, '方块走了。')).encode(encoding))
    (f/'no.times.zh.txt').write_text('方块走了\n又走了', encoding='utf-8')
    for name in ('good', 'utf16', 'lonely'):
        (f/f'{name}.summary.txt').write_text('A square walks on.')

def bring_bad_files(f):
    whole_file = (f/'good.mp4').read_bytes()
    (f/'broken.mp4').write_bytes(np.random.default_rng(0).bytes(5000))
    (f/'empty.mp4').touch()
    (f/'cut.mp4').write_bytes(whole_file[:300]) # ends within its index
    (f/'text.mkv').write_text('plain text\n' * 50)
    sound(f/'audio.wav'), sound(f/'audio.mp4')
    (f/'twice.avi').write_bytes(whole_file)
    (f/'twice.en.vtt').write_text('WEBVTT\n\n00:00.000 --> 00:02.000\na\n')
    (f/'good.de.srt').touch()
    (f/'good.fr.txt').write_bytes(whole_file) # a video under a wrong name
    (f/'mute@12.mp4').write_bytes(whole_file)
    (f/'empty_summary.summary.txt').write_text('\n')
    (f/'picture.jpg').write_bytes(b'\xff\xd8')

def bring_tables(f):
    lines = '\n'.join(line for line, _ in QUERIES)
    (f/'queries.csv').write_text(f'\ufeff{lines}\n', encoding='utf-8')
    good = '{"video": "late", "start": 0, "end": 3, "en": "walks", "zh": "走"}'
    (f/'queries.jsonl').write_text(f'{good}\n{{oops\n[1]\n', encoding='utf-8')
    (f/'splits.csv').write_text('\n'.join(['video,split', *SPLITS, '']), encoding='utf-8')

@pytest.fixture(scope='module')
def mess(tmp_path_factory):
    "The folder, the dataset, and what ingest says of it."
    root = tmp_path_factory.mktemp('mess')
    f = root/'in'
    f.mkdir()
    for bring in (bring_good_files, bring_bad_files, bring_tables): bring(f)
    return f, root/'out', ingest(f, root/'out', workers=1)

FAULTS = { # item -> how the report begins about it
    'broken.mp4': 'left out: is not a video, or is damaged',
    'empty.mp4': 'left out: is empty',
    'cut.mp4': 'left out: holds no pictures, or ends before its index',
    'text.mkv': 'left out: is not a video',
    'audio.mp4': 'left out: holds sound, but no pictures',
    'audio.wav': 'left out: is neither a video',
    'twice.mp4': 'left out: twice.avi was taken for this video',
    'twice.en.vtt': 'left out: twice.en.srt was taken for this transcript',
    'lonely.en.srt': 'left out: there is no video lonely',
    'lonely.summary.txt': 'left out: there is no video lonely',
    'good.de.srt': 'left out: is empty',
    'good.fr.txt': 'left out: is not text',
    'mute.srt': 'left out: does not say its language',
    'mute@12.mp4': 'left out: ends like a window',
    'empty_summary.summary.txt': 'left out: holds no cue',
    'picture.jpg': 'left out: is neither a video',
    'no.times.zh.txt': 'in part: has no times',
    'mute.mp4': 'made: 6.0 s, no transcript, train',
    'late.mp4': 'in part: 6.0 s, transcripts in en, test; '
                '1 of 3 cues begin after the end of the video',
    'utf16.mp4': 'made: 6.0 s, transcripts in zh, summary',
    'good.mp4': 'made: 6.0 s, transcripts in en, zh, summary, train',
    'Ação.mp4': 'made: 6.0 s, transcripts in zh, train',
    'splits.csv, line 5': "left out: there is no split 'dev'",
    'splits.csv, line 6': "left out: there is no video 'nobody'",
    'splits.csv, line 7': 'left out: good was put into a split before',
    'queries.jsonl, line 2': 'left out: is not JSON',
    'queries.jsonl, line 3': 'left out: is not JSON'} | {
    f'queries.csv, line {n}': f'left out: {why}' for n, (_, why) in enumerate(QUERIES, 1) if why}

@pytest.mark.parametrize('item, words', FAULTS.items())
def test_every_fault_is_told(mess, item, words):
    said = outcome(mess[2], item)
    assert said and words.removeprefix('left out: ') in said, said
    assert said.split(':')[0] == words.split(':')[0], said
    assert '\n' not in said

def test_good_files_are_used_beside_bad_ones(mess):
    f, out, report = mess
    moments, store = load_mtvr(out), FeatureStore(out/'video_action_features')
    searched = {name for split in moments.durations.values() for name in split}
    assert set(store) == searched == set(NAMES)
    texts = [q.texts['en'] for q in moments.splits['train']]
    assert texts == ['a red square', 'it walks', 'silent']
    assert [q.video for q in moments.splits['test']] == ['late']
    store.verify()
    np.testing.assert_array_equal(store['good'], extract_video(f/'good.mp4', PixelFeatures()))
    cues, spoken = read_transcript(f/'good.zh.srt'), moments.subtitles['zh']
    np.testing.assert_array_equal(spoken['good'], subtitle_rows(cues, HashedText(), 4))
    assert not spoken['mute'].any() and spoken['mute'].shape == (4, 768) # silence
    assert len(report) == len(report.drop_duplicates(['item', 'about']))
    assert (out/'report.csv').read_text('utf-8').count('\n') == len(report) + 1

def test_tables_that_cannot_be_read(tmp_path):
    video(tmp_path, 'a.mp4'), video(tmp_path, 'b.mp4')
    latin = 'video,start,end,pt\na,0,1,ação\n'.encode('latin-1')
    for data, words in ((b'', 'is empty'), (b'video,en\na,x\n', 'has no column start, end'),
                        (latin, 'is not UTF-8')):
        (tmp_path/'queries.csv').write_bytes(data)
        assert words in outcome(ingest(tmp_path, tmp_path/'out', workers=1), 'queries.csv')
    assert load_mtvr(tmp_path/'out').splits == {}

@pytest.mark.parametrize('how, words', [
    (dict(overlap=100), ['windows of 100 clips cannot share 100']),
    (dict(overlap=-1), ['cannot share -1']),
    (dict(piece=30), ['30 rows make no piece']),
    (dict(text=HashedText(seconds=2.)), ['rows cover 2.0 s, those of videos 1.5 s'])])
def test_questions_without_sense(tmp_path, how, words):
    video(tmp_path, 'a.mp4')
    refused(lambda: ingest(tmp_path, tmp_path/'out', workers=1, **how), *words)

def test_folders_that_are_none(tmp_path, monkeypatch):
    refused(lambda: ingest(tmp_path/'none', tmp_path/'out'), 'there is no such folder')
    refused(lambda: ingest(tmp_path, tmp_path/'out'), 'holds no video')
    (tmp_path/'a.mp4').write_bytes(b'x')
    refused(lambda: ingest(tmp_path/'a.mp4', tmp_path/'out'), 'there is no such folder')
    refused(lambda: ingest(tmp_path, tmp_path/'out', workers=1),
            'holds no video that can be used, e.g. a.mp4 is not a video')
    (tmp_path/'out').mkdir()
    (tmp_path/'out'/'thesis.tex').touch()
    refused(lambda: ingest(tmp_path, tmp_path/'out'),
            "holds ['thesis.tex'], which was not made here")
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
    frames = PixelFeatures()
    frames.contract = HOW2_ACTION
    refused(lambda: ingest(tmp_path, tmp_path/'out', video=frames), 'a row covers 16 frames')

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
        refused(lambda: ingest(f, tmp_path/'out', workers=1),
                'cannot be written (No space left on device)', 'make room there')
    assert not (tmp_path/'out').exists()
    assert len(list((tmp_path/'out.work').glob('*.npz'))) == 1
    report = ingest(f, tmp_path/'out', workers=1)
    assert set(report.outcome) == {'made', 'left out'} # there are no summaries

def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    video(tmp_path, 'a.mp4'), video(tmp_path, 'b.mp4')
    (tmp_path/'b.en.srt').write_text(srt((0., 1., 'x')))
    for module, name in ((pieces, 'probe'), (ingesting, 'read_transcript')):
        def read(path, real=getattr(module, name)): # who runs tests as root may read everything
            if Path(path).name in ('a.mp4', 'b.en.srt'):
                raise PermissionError(errno.EACCES, 'Permission denied', str(path))
            return real(path)
        monkeypatch.setattr(module, name, read)
    report = ingest(tmp_path, tmp_path/'out', workers=1)
    for item in ('a.mp4', 'b.en.srt'):
        assert outcome(report, item).startswith('left out: cannot be read (')
        assert 'Permission denied' in outcome(report, item)
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

def kill_after(n, work, *arguments):
    "Kill a call when so many pieces are finished; how many there are then."
    finished = lambda: len(list(work.glob('*.npz')))
    command = [sys.executable, '-c', KILLED, *arguments]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    begin = time.monotonic()
    while finished() < n and process.poll() is None and time.monotonic() - begin < 60:
        time.sleep(.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return finished()

def test_a_killed_call_goes_on(tmp_path):
    f, out, work = tmp_path/'in', tmp_path/'out', tmp_path/'out.work'
    f.mkdir()
    for k, seconds in enumerate((5., 100., 100., 65.)): # 1, 4, 4 and 3 pieces of 30 s
        video(f, f'v{k}.mp4', seconds, k)
    (f/'v1.en.srt').write_text(srt(*[(t, t + 2., f'word{t}') for t in range(0, 96, 3)]))
    done = kill_after(3, work, f, out)
    assert 3 <= done < 12 and not out.exists()
    (work/'.x.npz.99.tmp').touch() # what was being written
    counting = Counting()
    report = ingest(f, out, video=counting, workers=1, piece=20)
    assert counting.calls == 12 - done and not list(work.glob('.*.tmp'))
    again, in_one = tmp_path/'again', tmp_path/'in_one'
    assert ingest(f, again, workers=2, piece=20).equals(report)
    assert content(again) == content(out) # by several processes, without a pause
    ingest(f, in_one, workers=1)
    assert content(in_one) == content(out) # and in one piece
    counting.calls = 0
    video(f, 'v0.mp4', 6., 9)
    (f/'v1.en.srt').write_text(srt((0., 2., 'new')))
    ingest(f, out, video=counting, workers=1, piece=20)
    assert counting.calls == 1 # only what was replaced; subtitles do not touch pictures

def test_only_what_a_killed_call_left_is_thrown_away(tmp_path):
    "The folder of pieces, and the one around the dataset, may be somebody's."
    f, work = tmp_path/'in', tmp_path/'mine'
    f.mkdir(), work.mkdir()
    video(f, 'a.mp4')
    kept = [work/name for name in ('.foo.bar.old', '.foo.bar.tmp', '.foo.12.old', '.npz.12.tmp',
                                   'a.npz.12.tmp', '.a.npz.tmp', '.a.npz.12.tmp~')]
    kept += [tmp_path/name for name in ('.out.bar.old', '.other.12.tmp', '.out.txt.12.tmp',
                                        '.outer.12.old', 'out.12.old')]
    left = [work/'.a.npz.12.tmp', tmp_path/'.out.12.old', tmp_path/'.out.7.tmp']
    for path in kept: path.write_text('mine')
    (work/'.theirs.12.old').mkdir(), (work/'.theirs.12.old'/'thesis.tex').touch()
    left[0].touch()
    for path in left[1:]: path.mkdir(), (path/'rows').touch()
    ingest(f, tmp_path/'out', work=work, workers=1)
    assert all(path.read_text() == 'mine' for path in kept)
    assert (work/'.theirs.12.old'/'thesis.tex').exists()
    assert not any(path.exists() for path in left)
    assert len(list(work.glob('*.npz'))) == 1

@pytest.mark.parametrize('kind', ['mkv', 'webm'])
def test_pieces_equal_one_pass(tmp_path, kind):
    video(tmp_path, f'a.{kind}', 70.)
    for name, piece in (('whole', 400), ('pieces', 20)):
        ingest(tmp_path, tmp_path/name, workers=1, piece=piece)
    assert len(list((tmp_path/'pieces.work').glob('*.npz'))) == 3
    assert content(tmp_path/'pieces') == content(tmp_path/'whole')

def test_a_damaged_end_keeps_its_place(tmp_path):
    f = tmp_path/'in'
    f.mkdir()
    whole_file = video(f, 'a.mp4', 100.).read_bytes()
    (f/'b.mp4').write_bytes(whole_file[:int(len(whole_file) * .7)])
    report = ingest(f, tmp_path/'out', workers=1, piece=20)
    said = outcome(report, 'b.mp4')
    assert 'in part' in said and 'pictures end at' in said
    rows = FeatureStore(tmp_path/'out'/'video_action_features')
    n = len(rows['b'])
    assert 20 < n < 66
    np.testing.assert_array_equal(rows['b'][:n - 1], rows['a'][:n - 1])
    assert OwnVideos(tmp_path/'out').videos['b']['duration'] <= n * 1.5


# --- windows, against what is plain

@pytest.mark.parametrize('n', [1, 9, 10, 11, 16, 17, 22, 23, 100])
def test_windows_hold_everything(n):
    found = cut_windows(n, 10, 4)
    assert found[0][0] == 0 and found[-1][1] == n and all(b - a <= 10 for a, b in found)
    assert all(c == a + 6 and b - c == 4 for (a, b), (c, _) in zip(found, found[1:]))
    assert all(b - a > 4 for a, b in found[1:])
    for st in range(n):
        for ed in range(st + 1, min(st + 4, n) + 1):
            assert any(a <= st and ed <= b for a, b in found)

@pytest.fixture(scope='module')
def film(tmp_path_factory):
    "A film of windows of 10 clips that share 4, with queries here and there."
    root = tmp_path_factory.mktemp('film')
    f = root/'in'
    f.mkdir()
    video(f, 'film.mp4', 60.), video(f, 'short.mp4', 8., 1), video(f, 'other.mp4', 9., 2)
    said = srt(*[(t, t + 2., f'第{t}秒') for t in range(0, 58, 4)])
    (f/'film.zh.srt').write_text(said, encoding='utf-8')
    lines = ['video,start,end,zh']
    moments = (0, 3), (13, 16), (8, 14), (55, 60), (5, 45), (59, 61)
    lines += [f'film,{start},{end},方块' for start, end in moments]
    lines += ['short,0,3,方', 'other,0,3,块', '']
    (f/'queries.csv').write_text('\n'.join(lines), encoding='utf-8')
    (f/'splits.csv').write_text('video,split\nfilm,train\nshort,train\nother,test\n')
    return f, root/'out', ingest(f, root/'out', max_clips=10, overlap=4, workers=1)

def test_a_long_video_in_windows(film):
    f, out, report = film
    c, rows = load_mtvr(out), extract_video(f/'film.mp4', PixelFeatures())
    heard = subtitle_rows(read_transcript(f/'film.zh.srt'), HashedText(), len(rows))
    names = [n for n in c.durations['train'] if n != 'short']
    assert c.languages == ('zh',) and names == [f'film@{t}' for t in (0, 9, 18, 27, 36, 45)]
    for name in names:
        a = int(whole(name)[1] / 1.5)
        np.testing.assert_array_equal(c.video[name], rows[a:a + 10])
        np.testing.assert_array_equal(c.subtitles['zh'][name], heard[a:a + 10])
        assert c.durations['train'][name] == min(15., 60. - a * 1.5)
    assert [(q.video, q.moment) for q in c.splits['train']] == [
        ('film@0', (0., 3.)), ('film@9', (4., 7.)), ('film@0', (8., 14.)), ('film@45', (10., 15.)),
        ('film@18', (0., 15.)), ('film@45', (14., 15.)), ('short', (0., 3.))]
    assert 'was cut to 18 to 33 s' in outcome(report, 'queries.csv, line 6')
    MomentData(c).collate([0, 1]), VideoSet(c, 'train').lengths

def test_what_is_said_and_seen_in_a_window(film):
    o = OwnVideos(film[1])
    assert o.lines('film@9', 'zh')[:2] == [(-1., 1., '第8秒'), (3., 5., '第12秒')]
    assert o.lines('short', 'zh') == []
    np.testing.assert_array_equal(o.picture('film@9', 3.), o.picture('film', 12.))
    refused(lambda: o.picture('flim', 1.), "there is no video 'flim'")

def test_typed_queries_are_embedded_as_the_contract_says(film, tmp_path):
    o = OwnVideos(film[1])
    np.testing.assert_array_equal(o.moments.embed('方块', 'zh'), HashedText().encode(['方块'])[0])
    assert o.moments.max_clips == 10
    class Unknown(HashedText): name = 'letters of an encoder that nobody registered'
    ingest(film[0], tmp_path/'out', text=Unknown(), workers=1)
    corpus = OwnVideos(tmp_path/'out').moments
    assert corpus.subtitles['zh'].contract.extractor == Unknown.name and corpus.embed is None


# --- both halves read it

def test_both_layouts_in_the_language_that_is_there(lessons):
    c = load_how2(lessons[0]/'out')
    assert {s: len(r) for s, r in c.splits.items()} == {'train': 8, 'test': 2}
    assert set(c.splits['train'][0].transcripts) == {'zh'}
    assert c.splits['test'][0].transcripts['zh'] == '黄 球 飞 了 。 黄 球 停 了 。'
    assert outcome(lessons[1], 'summaries') == 'made: 8 train (zh), 2 test (zh)'
    assert 'made: 8 train' in outcome(lessons[1], 'moments')

def test_english_alone_is_for_pretraining(tmp_path):
    for k, languages in enumerate((['pt'], ['en', 'pt'], ['en', 'pt'], ['en'])):
        video(tmp_path, f'v{k}.mp4', 3., k)
        for language in languages:
            (tmp_path/f'v{k}.{language}.srt').write_text(srt((0., 2., f'words {language}')))
        (tmp_path/f'v{k}.summary.txt').write_text('Words.')
    (tmp_path/'splits.csv').write_text('video,split\nv0,train\nv1,train\nv2,test\nv3,test\n')
    ingest(tmp_path, tmp_path/'out', workers=1)
    splits = load_how2(tmp_path/'out').splits
    ids = {split: [r.id for r in records] for split, records in splits.items()}
    assert ids == dict(pretrain=['v3'], train=['v0', 'v1'], test=['v2'])
    languages = {split: set(records[0].transcripts) for split, records in splits.items()}
    common = dict(pretrain={'en'}, train={'pt'}, test={'en', 'pt'}) # what all of a split have
    assert languages == common

@pytest.mark.slow
def test_english_alone_is_summarised_too(tmp_path):
    from mcls_nb.papers.runs import Run
    for k in range(3):
        video(tmp_path, f'v{k}.mp4', 3., k)
        (tmp_path/f'v{k}.en.srt').write_text(srt((0., 2., f'ball number {k}')))
        (tmp_path/f'v{k}.summary.txt').write_text('A ball.')
    ingest(tmp_path, tmp_path/'out', workers=1)
    run = Run('VDF', 'tiny', data=str(tmp_path/'out'), smoke=True)
    product, training = run.train(tmp_path/'runs')
    assert training.trained.language == product.language == 'en'
    assert set(product.summarize_videos(OwnVideos(tmp_path/'out'))) == {'v0', 'v1', 'v2'}
