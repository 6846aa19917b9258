"Transcripts and videos as people have them: what can be used is used, a sentence tells the rest."
import sys, tracemalloc, warnings, wave

import numpy as np
import pytest

from helpers import refused
from mcls_nb.core import DataError
from mcls_nb.videos.media import Cue, clips, frames, probe, read_transcript, write_video

av, pysubs2 = pytest.importorskip('av'), pytest.importorskip('pysubs2') # the extra [media]


def quiet(f):
    "What `f` returns when it may not warn."
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        return f()

def grey(n, step=4, h=48, w=64):
    "Pictures whose grey level is their number times `step`, with a little texture."
    texture = np.random.default_rng(0).integers(0, 16, (h, w, 3), np.uint8)
    return [np.full((h, w, 3), k * step, np.uint8) + texture for k in range(n)]

def levels(pictures): return [int(round((p.mean() - 7.5) / 4)) for p in pictures]

def srt(*cues):
    "A SubRip file of (times, text)."
    return '\n\n'.join(f'{k}\n{times}\n{text}' for k, (times, text) in enumerate(cues, 1))

def unheard(f):
    "What `f` returns, whatever it warns of."
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return f()

TIME = '00:00:01,000 --> 00:00:02,500'


# --- transcripts

SAID = {'pt': 'A instrução não é fácil, você está aqui?', 'zh': '我们今天喝茶', 'en': "It's here"}

@pytest.mark.parametrize('encoding, language', [
    ('utf-8', 'pt'), ('utf-8-sig', 'pt'), ('utf-16', 'pt'), ('utf-16-le', 'pt'),
    ('utf-16-be', 'en'), ('utf-32', 'zh'), ('latin-1', 'pt'), ('cp1252', 'pt'),
    ('utf-8', 'zh'), ('utf-8-sig', 'zh'), ('utf-16', 'zh'), ('utf-16-le', 'zh'),
    ('utf-16-be', 'zh'), ('gb18030', 'zh'), ('gb2312', 'zh')])
def test_encodings_are_found(tmp_path, encoding, language):
    file, due = tmp_path/'a.srt', [Cue(1., 2.5, SAID[language])]
    file.write_bytes(srt((TIME, SAID[language])).encode(encoding))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        assert read_transcript(file) == due
    sure = encoding in ('utf-8', 'utf-8-sig', 'utf-16', 'utf-32') # by UTF-8 itself or by a mark
    assert bool(said) != sure and (sure or 'is a guess' in str(said[0].message))
    assert quiet(lambda: read_transcript(file, encoding=encoding)) == due

def test_short_words_are_not_taken_for_another_language(tmp_path):
    file = tmp_path/'a.srt'
    words = {'ação': 'latin-1', 'não é': 'latin-1', 'El niño': 'latin-1', '你好': 'gb18030',
             'it’s “fine”': 'cp1252'}
    for text, encoding in words.items():
        file.write_bytes(srt((TIME, text)).encode(encoding))
        with pytest.warns(UserWarning, match='is a guess'):
            assert read_transcript(file)[0].text == text

@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
def test_ends_of_lines(tmp_path, end):
    (tmp_path/'a.srt').write_bytes(end.join(srt((TIME, 'a\nb'), (TIME, 'c')).split('\n')).encode())
    assert [c.text for c in quiet(lambda: read_transcript(tmp_path/'a.srt'))] == ['a b', 'c']

@pytest.mark.parametrize('text, cues', [
    (srt((TIME, 'a'), (TIME, 'b')), [(1, 2.5, 'a'), (1, 2.5, 'b')]), # at the same time
    (srt(('00:00:04,000 --> 00:00:09,000', 'b'), ('00:00:01,000 --> 00:00:06,000', 'a')),
     [(1, 6, 'a'), (4, 9, 'b')]), # unsorted, overlapping
    (srt((TIME, '<font color="#fff"><b>a</b></font> {\\an8}b &amp; c < d')),
     [(1, 2.5, 'a b & c < d')]),
    (f'{TIME}\na\n2\n{TIME}\nb', [(1, 2.5, 'a'), (1, 2.5, 'b')]), # no blank line in between
    (f'{TIME}  X1:40 X2:600\n99\n', [(1, 2.5, '99')]), # text that is a number
    (srt(('1:02:03.5 --> 1:02:04,250', 'a')), [(3723.5, 3724.25, 'a')]),
    ('WEBVTT - title\n\nSTYLE\n::cue {}\n\n1\n00:01.000 --> 00:02.500\n<c.x>a</c>\n\nNOTE b\n',
     [(1, 2.5, 'a')]),
    ('WEBVTT\n\n10:00:01.000 --> 10:00:02.500\n<v Ann>a</v>', [(36001, 36002.5, 'a')]),
    ('a\nb', [(None, None, 'a'), (None, None, 'b')]),
    ('[00:01] a\n[00:03] b', [(1, 3, 'a'), (3, 8, 'b')]),
    ('00:01 - 00:02 a\nc\n00:03 b', [(1, 2, 'a c'), (3, 8, 'b')]),
    ('0:01\na\n1:00:03\nb', [(1, 3603, 'a'), (3603, 3608, 'b')]), # as players show it
])
def test_forms_of_cues(tmp_path, text, cues):
    (tmp_path/'a.txt').write_text(text, encoding='utf-8')
    assert quiet(lambda: read_transcript(tmp_path/'a.txt')) == [Cue(*c) for c in cues]

@pytest.mark.parametrize('bad, why', [
    (('00:00:XX,000 --> 00:00:02,000', 'x'), 'without times that can be read'),
    (('00:00:01,000 -->', 'x'), 'without times that can be read'),
    (('00:00:05,000 --> 00:00:02,000', 'x'), 'ending where it begins, or before'),
    ((TIME, ''), 'without text'), ((TIME, '<i> </i>'), 'without text')])
def test_a_bad_cue_costs_itself_only(tmp_path, bad, why):
    (tmp_path/'a.srt').write_text(srt((TIME, 'a'), bad, (TIME, 'b')))
    with pytest.warns(UserWarning, match=f'a.srt: 1 of 3 cues were left out: 1 {why}.$'):
        assert [c.text for c in read_transcript(tmp_path/'a.srt')] == ['a', 'b']

def test_any_line_of_a_transcript_may_be_damaged(tmp_path):
    text, rng = srt(*[(TIME, f'word{k}') for k in range(5)]), np.random.default_rng(0)
    for form in (text, 'WEBVTT\n\n' + text.replace(',', '.')):
        for _ in range(60):
            at = rng.integers(0, len(form) - 8)
            (tmp_path/'a.srt').write_text(form[:at] + '#' * 4 + form[at + 4:])
            assert len(unheard(lambda: read_transcript(tmp_path/'a.srt'))) >= 4

@pytest.mark.parametrize('data, words', [
    (b'', ['is empty']), (b' \n\n', ['holds no cue']), (b'WEBVTT\n\n', ['holds no cue']),
    (b'\xef\xbb\xbf', ['holds no cue']),
    (srt(('00:00:XX --> 1', 'x')).encode(), ['holds no cue that can be used (1 without times']),
    (bytes(range(256)) * 4, ['is not text in any encoding']),
    (b'\xff\xfe' + b'a\x00' + b'\x00\xd8', ['is not utf-16'])])
def test_transcripts_that_are_none(tmp_path, data, words):
    (tmp_path/'a.srt').write_bytes(data)
    refused(lambda: read_transcript(tmp_path/'a.srt'), 'a.srt: ', *words)

def test_transcript_from_elsewhere(tmp_path):
    refused(lambda: read_transcript(tmp_path/'none.srt'), 'there is no such file')
    refused(lambda: read_transcript(tmp_path), 'is a folder')
    write_video(tmp_path/'a.mp4', grey(3))
    refused(lambda: read_transcript(tmp_path/'a.mp4'), 'is not text')
    (tmp_path/'a.srt').write_bytes(srt((TIME, 'não')).encode('latin-1'))
    refused(lambda: read_transcript(tmp_path/'a.srt', encoding='utf-8'), 'is not utf-8')
    refused(lambda: read_transcript(tmp_path/'a.srt', encoding='utf-9'),
            "there is no encoding 'utf-9'")


# --- videos that can be read

@pytest.mark.parametrize('kind', ['mp4', 'mkv', 'webm'])
@pytest.mark.parametrize('rate, fps', [(10, 10), (10, 4), (25, 10), (29.97, 12), (5, 12), (24, 1)])
def test_frames_are_what_a_viewer_sees(tmp_path, kind, rate, fps):
    write_video(tmp_path/f'a.{kind}', grey(30), fps=rate)
    got = quiet(lambda: list(frames(tmp_path/f'a.{kind}', fps)))
    times = [t for t, _ in got]
    np.testing.assert_allclose(times, np.arange(len(got)) / fps)
    assert abs(len(got) - 30 / rate * fps) <= 1 # the grid ends with the video
    assert levels(p for _, p in got) == [min(int(t * rate + .03), 29) for t in times]

@pytest.mark.parametrize('kind', ['mp4', 'mkv', 'webm'])
def test_variable_rate_and_stretches(tmp_path, kind):
    times = np.cumsum(np.random.default_rng(3).choice([.04, .1, .5, 1.], 30))
    times -= times[0]
    def shown_at(items): # numbers of the pictures that are due at the items' times
        return [int(np.searchsorted(times, t + .0015)) - 1 for t, _ in items]
    file = write_video(tmp_path/f'a.{kind}', zip(times, grey(30)), fps=20)
    every = list(frames(file))
    np.testing.assert_allclose([t for t, _ in every], times, atol=.002)
    whole = list(frames(file, fps=8))
    assert levels(p for _, p in whole) == shown_at(whole)
    for start, end in ((0, 1.), (2.3, 4.1), (5., None)):
        part = list(frames(file, fps=8, start=start, end=end))
        until = end or whole[-1][0] + .125
        grid = [t for t in (start + k / 8 for k in range(1000)) if t < until]
        assert abs(len(part) - len(grid)) <= 1
        assert [t for t, _ in part] == pytest.approx(grid[:len(part)])
        assert levels(p for _, p in part) == shown_at(part)
        stretch = [t for t, _ in frames(file, start=start, end=end)]
        assert stretch == [t for t, _ in every if start <= t < (end or 99)]

@pytest.mark.parametrize('degrees', [0, 90, 180, 270])
def test_rotation_is_applied(tmp_path, degrees):
    corner = np.zeros((48, 64, 3), np.uint8)
    corner[:12, :16] = 255
    write_video(tmp_path/'a.mp4', [corner] * 3, rotation=degrees)
    _, shown = next(frames(tmp_path/'a.mp4'))
    assert abs(shown.astype(int) - np.rot90(corner, degrees // 90)).mean() < 8
    info = probe(tmp_path/'a.mp4')
    assert info.size == shown.shape[:2] and info.rotation == degrees
    _, small = next(frames(tmp_path/'a.mp4', size=24))
    assert small.shape == ((32, 24, 3) if degrees % 180 else (24, 32, 3))

def test_wrong_extension_is_no_obstacle(tmp_path):
    file = write_video(tmp_path/'a.mp4', grey(3)).rename(tmp_path/'50% é?#:.txt')
    assert probe(file).size == (48, 64) and len(list(frames(file))) == 3

def test_memory_does_not_grow(tmp_path):
    write_video(tmp_path/'a.mp4', (p for _ in range(20) for p in grey(50)), fps=10)
    peaks = []
    for end in (5., 100.):
        tracemalloc.start()
        for _ in clips(frames(tmp_path/'a.mp4', fps=10, end=end), seconds=1.5): pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] * 1.5 < 2e6

def test_a_sound_track_is_told(tmp_path):
    with av.open(str(tmp_path/'a.mp4'), 'w') as c:
        video, sound = c.add_stream('libx264', rate=10), c.add_stream('aac', rate=16000)
        video.width, video.height, video.pix_fmt = 64, 48, 'yuv420p'
        for p in grey(10): c.mux(video.encode(av.VideoFrame.from_ndarray(p, 'rgb24')))
        c.mux(video.encode())
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), 'fltp', 'mono')
        tone.sample_rate = 16000
        c.mux(sound.encode(tone) + sound.encode())
    info = probe(tmp_path/'a.mp4')
    assert info.has_audio and info.has_video and info.fps == 10
    assert info.duration == pytest.approx(1, abs=.1)
    assert len(quiet(lambda: list(frames(tmp_path/'a.mp4', fps=5)))) == 5


# --- videos that cannot, or in part

@pytest.fixture
def whole(tmp_path): return write_video(tmp_path/'whole.mp4', grey(60), fps=10).read_bytes()

def test_a_file_cut_short_gives_its_beginning(tmp_path, whole):
    counts, cut = [], tmp_path/'cut.mp4'
    told = r'cut.mp4: .*pictures end at \d.\d s of 6.0 s; the file is damaged or was cut off'
    for share in (.5, .7, .9):
        cut.write_bytes(whole[:int(len(whole) * share)])
        with pytest.warns(UserWarning, match=told): some = list(frames(cut, fps=10))
        assert levels(p for _, p in some) == list(range(len(some)))
        counts.append(len(some))
    assert 0 < counts[0] < counts[1] < counts[2] < 60
    asked = quiet(lambda: list(frames(cut, fps=10, end=1.))) # this part is whole
    assert len(asked) == 10

def test_a_damaged_stretch_is_passed_over(tmp_path, whole):
    data = bytearray(whole)
    data[len(data) // 2:len(data) // 2 + 400] = bytes(400)
    (tmp_path/'hole.mp4').write_bytes(data)
    shown = unheard(lambda: list(frames(tmp_path/'hole.mp4', fps=10)))
    assert [t for t, _ in shown] == pytest.approx(np.arange(60) / 10)

def test_a_damaged_time_does_not_fill_the_disk(tmp_path):
    write_video(tmp_path/'a.mkv', zip([0., .1, .2, 50_000.], grey(4)), fps=10)
    with pytest.warns(UserWarning, match='1 pieces cannot be decoded'):
        assert levels(p for _, p in frames(tmp_path/'a.mkv', fps=10)) == [0, 1, 2, 3]

def test_a_file_that_ends_before_its_index(tmp_path, whole):
    with av.open(str(tmp_path/'a.mp4'), 'w') as c: # the index behind
        s = c.add_stream('libx264', rate=10)
        s.width, s.height, s.pix_fmt = 64, 48, 'yuv420p'
        for p in grey(20): c.mux(s.encode(av.VideoFrame.from_ndarray(p, 'rgb24')))
        c.mux(s.encode())
    data = (tmp_path/'a.mp4').read_bytes()
    (tmp_path/'cut.mp4').write_bytes(data[:len(data) // 2])
    refused(lambda: frames(tmp_path/'cut.mp4'), 'cut.mp4', 'before its index')

def sound(path):
    with wave.open(str(path), 'wb') as w:
        w.setnchannels(1), w.setsampwidth(2), w.setframerate(8000)
        w.writeframes(bytes(16000))
    return path

def test_sound_alone_is_refused(tmp_path):
    info = probe(sound(tmp_path/'a.wav'))
    assert (info.duration, info.size, info.has_video, info.has_audio) == (1., None, False, True)
    refused(lambda: frames(tmp_path/'a.wav'), 'a.wav: holds sound, but no pictures')
    sound(tmp_path/'a.wav').rename(tmp_path/'a.mp4')
    refused(lambda: frames(tmp_path/'a.mp4'), 'a.mp4: holds sound, but no pictures')

def test_a_cover_is_no_video(tmp_path):
    picture = av.VideoFrame.from_ndarray(grey(1)[0], 'rgb24')
    with av.open(str(tmp_path/'a.m4a'), 'w', format='mp4') as c:
        audio, cover = c.add_stream('aac', rate=16000), c.add_stream('mjpeg', rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, 'yuvj420p'
        cover.disposition = av.stream.Disposition.attached_pic
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), 'fltp', 'mono')
        tone.sample_rate = 16000
        c.mux(cover.encode(picture) + cover.encode() + audio.encode(tone) + audio.encode())
    assert not probe(tmp_path/'a.m4a').has_video
    refused(lambda: frames(tmp_path/'a.m4a'), 'holds sound, but no pictures')

@pytest.mark.parametrize('data, words', [
    (b'', ['is empty']), (b'plain text\n' * 99, ['is not a video']),
    (np.random.default_rng(0).bytes(10_000), ['is not a video, or is damaged']),
    (b'#EXTM3U\n#EXTINF:9,\nhttp://localhost/a.ts\n', ['is not a video']),
    (b"ffconcat version 1.0\nfile 'b.mp4'\n", ['is not a video']),
    (b'\x89PNG\r\n\x1a\n' + bytes(100), ['is not a video']),
    (b'1\n00:00:01,000 --> 00:00:02,000\na\n', ['is not a video'])])
def test_files_that_are_no_video(tmp_path, data, words):
    (tmp_path/'a.mp4').write_bytes(data)
    for f in (frames, probe): refused(lambda: f(tmp_path/'a.mp4'), 'a.mp4: ', *words)

def test_without_the_extra(tmp_path, monkeypatch):
    write_video(tmp_path/'a.mp4', grey(3))
    (tmp_path/'a.srt').write_text(srt((TIME, 'a')))
    for package in ('av', 'pysubs2'): monkeypatch.setitem(sys.modules, package, None)
    missing = 'the package PyAV is not installed; pip install "mcls_nb[media]"'
    refused(lambda: frames(tmp_path/'a.mp4'), missing)
    refused(lambda: read_transcript(tmp_path/'a.srt'), 'the package pysubs2 is not installed')

@pytest.mark.parametrize('kind', ['mp4', 'mkv', 'webm'])
def test_any_byte_may_be_damaged(tmp_path, kind):
    whole = write_video(tmp_path/f'a.{kind}', grey(30), fps=10).read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(40):
        data = bytearray(whole)
        for at in rng.integers(0, len(data), 4): data[at] = rng.integers(256)
        if rng.random() < .3: data = data[:rng.integers(len(data) // 3, len(data))]
        (tmp_path/'b.mp4').write_bytes(data)
        try: shown = unheard(lambda: list(frames(tmp_path/'b.mp4', fps=5)))
        except DataError as e: assert str(e).endswith('.')
        else: assert all(p.shape[2] == 3 for _, p in shown)

def test_video_from_elsewhere(tmp_path):
    refused(lambda: frames(tmp_path/'none.mp4'), 'there is no such file')
    refused(lambda: frames(tmp_path), 'is a folder')
    refused(lambda: frames('http://localhost/a.mp4'), 'there is no such file')

@pytest.mark.parametrize('asked, words', [
    (dict(fps=0), ['0 frames a second']), (dict(fps=-1), ['frames a second']),
    (dict(start=3), ['start is 3 s, but the video ends at 2.0 s']),
    (dict(start=1, end=1), ['is no stretch of time']), (dict(start=-1), ['start is -1 s']),
    (dict(size=0), ['is no size']),
    (dict(size=(1, 2, 3)), ['is no size'])])
def test_questions_without_sense(tmp_path, asked, words):
    write_video(tmp_path/'a.mp4', grey(20))
    refused(lambda: frames(tmp_path/'a.mp4', **asked), *words)

@pytest.mark.parametrize('pictures, words', [
    ([], ['there is no picture to write']),
    ([np.zeros((47, 64, 3), np.uint8)], ['picture 0 is not']),
    ([np.zeros((48, 64, 3))], ['picture 0 is not']),
    ([np.zeros((48, 64), np.uint8)], ['picture 0 is not'])])
def test_pictures_that_cannot_be_written(tmp_path, pictures, words):
    refused(lambda: write_video(tmp_path/'a.mp4', pictures), *words)
    assert not list(tmp_path.iterdir())
